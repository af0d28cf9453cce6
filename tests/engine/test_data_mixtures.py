"""Mixtures: exact shares, an order of the index alone, and what is recorded of each source."""

from __future__ import annotations

import argparse
import inspect
import json
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.engine import train
from planner.engine.data.order import mixture_counts, mixture_places
from planner.engine.data.windows import Windows
from planner.errors import ConfigError
from planner.study import load_study, trial_config

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=5)


@given(WEIGHTS, st.integers(0, 3000))
def test_every_prefix_of_a_mixture_has_its_shares(weights, number):
    sources, _ = mixture_places(np.arange(number), weights)
    counts = np.bincount(sources, minlength=len(weights))
    assert counts.tolist() == mixture_counts(number, weights)
    shares = np.array(weights) / sum(weights)
    assert np.abs(counts - number * shares).max() <= len(weights) + number * 1e-5


@given(WEIGHTS, st.integers(0, 10**12), st.integers(1, 200))
def test_a_sample_of_a_mixture_depends_on_its_index_alone(weights, first, number):
    indices = np.arange(first, first + number)
    sources, places = mixture_places(indices, weights)
    for i in (0, number // 2, number - 1):
        alone = mixture_places(indices[i : i + 1], weights)
        assert (alone[0][0], alone[1][0]) == (sources[i], places[i])
    for source in range(len(weights)):
        mine = places[sources == source]
        assert np.array_equal(mine, np.arange(len(mine)) + (mine[0] if len(mine) else 0))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "code.txt").write_text(inspect.getsource(argparse)[:30_000])
    (folder / "prose.txt").write_text(inspect.getsource(textwrap)[:15_000])
    return {
        "code": {"corpus": str(folder / "code.txt"), "weight": 3},
        "prose": {"corpus": str(folder / "prose.txt"), "weight": 1, "max_unique_tokens": 600},
    }


@pytest.fixture(scope="module")
def mixed(settings, mixture):
    """A small trial on a mixture, as plain data."""
    data = settings(
        model={"num_layers": 2},
        train={"validation_tokens": 16 * 20, "num_validations": 4},
        batch={"micro_batch_sequences": 8},
    )
    return data | {"data": {"mixture": mixture}}


def test_workers_of_any_number_read_the_same_mixture(mixed, small):
    windows = Windows.load(small().replace(**mixed))
    whole = windows.training(0, 64)[0]
    for workers in (2, 4, 8):
        parts = [
            windows.training(64 // workers * rank, 64 // workers)[0] for rank in range(workers)
        ]
        assert np.array_equal(np.concatenate(parts), whole)
    code = bytes(windows.corpora[0].train)
    from_code = sum(bytes(row.numpy().astype("uint8")) in code for row in whole)
    assert 48 <= from_code <= 50


def test_a_mixture_is_validated_by_source_and_pooled_and_counts_each_ones_epochs(mixed, small):
    result = train(small().replace(**mixed))
    code, prose = (result.metrics[f"val_loss.{name}"] for name in ("code", "prose"))
    assert result.val_loss == pytest.approx((code + prose) / 2)
    assert abs(code - prose) > 1e-3
    assert result.metrics["unique_tokens.prose"] == 600
    assert result.metrics["unique_tokens"] == 27_000 + 600
    assert result.metrics["epochs.prose"] == pytest.approx(
        20 / 36
    )  # 80 samples, a quarter, 600 / 16 windows
    assert result.metrics["epochs.code"] == pytest.approx(60 / 1686)


def test_the_pooled_loss_does_not_follow_the_training_weights(mixed, small):
    windows = [
        Windows.load(small().replace(**mixed | {"data": {"mixture": {
            name: source | {"weight": weight} for (name, source), weight
            in zip(mixed["data"]["mixture"].items(), weights, strict=True)}}}))
        for weights in ((1, 1), (1, 9))
    ]  # fmt: skip
    assert np.array_equal(*(w.validation_windows for w in windows))
    assert windows[0].validation_weights == windows[1].validation_weights
    assert windows[0].content_hash != windows[1].content_hash


def test_a_mixture_goes_on_after_an_interruption_as_if_there_had_been_none(mixed, small, tmp_path):
    config = small().replace(**mixed)
    whole, halves = [], []
    train(config, on_metrics=lambda m: whole.append(m["val_loss"]))
    for stop_at in (2, None):
        train(
            config, checkpoint_dir=tmp_path,
            on_metrics=lambda m, s=stop_at: halves.append(m["val_loss"]) or len(halves) != s,
        )  # fmt: skip
    assert halves == whole


def test_a_document_of_one_source_is_not_read_again_from_another(tmp_path, small, settings):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(60):
            text = (
                f"document {number} " * 9 if number % 3 else f"{name}'s own document {number} " * 9
            )
            (tmp_path / name / f"{number}.txt").write_text(text)
    data = {"mixture": {name: {"corpus": str(tmp_path / name)} for name in ("a", "b")}}
    windows = Windows.load(
        small().replace(**settings(batch={"sequences_per_step": 4}) | {"data": data})
    )
    assert windows.corpora[1].left_out["duplicates"] == 40
    assert windows.facts(10)["left_out_duplicates"] == 40
    splits = [
        set(bytes(split).split(b"\0")) - {b""}
        for corpus in windows.corpora for split in (corpus.train, corpus.validation)
    ]  # fmt: skip
    assert sum(map(len, splits)) == len(set.union(*splits)) == 80


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 0}, "code.weight: Input should be greater than 0"),
        ({"weight": -1}, "code.weight: Input should be greater than 0"),
        ({"max_unique_tokens": 20}, "a batch has 6 of it"),
    ],
)
def test_a_mixture_that_cannot_be_read_says_why(mixed, small, mixture, change, message):
    wrong = {"data": {"mixture": mixture | {"code": mixture["code"] | change}}}
    with pytest.raises(ConfigError, match=message):
        train(small().replace(**mixed | wrong))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mixture": {"a": {"corpus": "x"}}}, "two or more"),
        ({"mixture": {"a": {"corpus": "x"}, "b": {"corpus": "y"}}, "corpus": "z"}, "not both"),
        ({"mixture": {"a": {"corpus": "x"}, "b": {"corpus": "y"}}, "max_unique_tokens": 9}, "one by one"),
        ({"mixture": {"a.b": {"corpus": "x"}, "b": {"corpus": "y"}}}, "pattern"),
    ],
)  # fmt: skip
def test_a_mixture_is_given_in_one_way(small, data, message):
    with pytest.raises(ConfigError, match=message):
        small().replace(data=data)


def test_a_trial_on_a_mixture_can_be_a_key(mixed, small):
    one, other = small().replace(**mixed), small().replace(**mixed)
    assert {one: 1}[other] == 1
    assert small() not in {one: 1}


def test_a_space_sweeps_the_weights_of_a_mixture(tmp_path, mixture):
    study = {
        "name": "mixing", "budget": {"device_hours": 1},
        "search": {"algorithm": "random", "num_trials": 2},
        "search_space": {"name": "weights", "parameters": {
            "data.mixture.prose.weight": {"uniform": [0.1, 1.0]}}},
        "base": {
            "model": {"num_layers": 1, "d_model": 32}, "train": {"tokens": 4096},
            "data": {"mixture": mixture},
        },
    }  # fmt: skip
    (tmp_path / "mixing.yaml").write_text(json.dumps(study))
    loaded = load_study(tmp_path / "mixing.yaml")
    config = trial_config(loaded, {"data.mixture.prose.weight": 0.5})
    assert config.data.mixture["prose"].weight == 0.5
    text = json.dumps(study).replace("mixture.prose.weight", "mixture.prose.wieght")
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"Did you mean 'data\.mixture\.prose\.weight'"):
        load_study(tmp_path / "wrong.yaml")
