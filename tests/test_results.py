"""Results survive their files: nothing is lost, absent stays absent."""

import dataclasses

import pandas as pd
import pytest

from planner.budget import Spend
from planner.errors import ConfigError, NotFoundError
from planner.planning import plan
from planner.results import CurvePoint, Results, read_results
from planner.run_folder import RunFolder, list_runs, write_atomically
from planner.trial import TrialResult, TrialState


@pytest.fixture
def results(small_study, tmp_path) -> Results:
    states = [TrialState.COMPLETED, TrialState.STOPPED, TrialState.DIVERGED, TrialState.COMPLETED]
    trials = tuple(
        TrialResult(
            trial=c.trial, config=c.config.model_dump(mode="json"), state=state,
            val_loss=None if state is TrialState.DIVERGED else 3.0 - i / 10,
            train_tokens=4096, metrics={"extra": 1.5},
        )
        for i, (c, state) in enumerate(zip(plan(small_study).feasible, states, strict=True))
    )  # fmt: skip
    return Results(
        study=small_study,
        trials=trials,
        curves=(CurvePoint(trial="t000", attempt=1, val_loss=3.5, train_tokens=128),),
        spend=Spend(device_hours=0.5, flops=1e12),
        folder=RunFolder.create(small_study, root=tmp_path / "runs"),
    )


def test_results_are_read_back_as_they_were_written(results):
    results.write()
    assert read_results(results.folder) == results


def test_the_table_has_what_varied_first_and_fixed_types(results):
    frame = results.to_frame()
    assert list(frame.columns[:4]) == ["trial", "state", "model", "optimizer.learning_rate"]
    assert frame["val_loss"].isna().tolist() == [False, False, True, False]
    assert str(frame["train_tokens"].dtype) == "Int64"


def test_the_best_is_the_smallest_loss_of_a_completed_trial(results):
    best = results.best()
    assert best is not None
    assert best.trial == "t003"
    only_stopped = dataclasses.replace(results, trials=results.trials[1:3])
    assert only_stopped.best() is None


def test_an_empty_sweep_has_an_empty_table(results):
    empty = dataclasses.replace(results, trials=(), curves=())
    empty.write()
    assert read_results(results.folder) == empty
    assert len(pd.read_parquet(results.folder.results)) == 0


def test_a_damaged_file_of_results_says_how_to_write_it_again(results):
    results.write()
    results.folder.results.write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="results of run 'small' are damaged") as caught:
        read_results(results.folder)
    assert caught.value.hint == "Write them again from its ledger: planner sweep --resume small"
    results.write()
    results.folder.curves.unlink()
    with pytest.raises(ConfigError, match="damaged"):
        read_results(results.folder)


def test_a_run_without_results_says_how_to_get_them(small_study, tmp_path):
    folder = RunFolder.create(small_study, root=tmp_path)
    with pytest.raises(NotFoundError, match="no results yet") as caught:
        read_results(folder)
    assert caught.value.hint == "Finish the sweep: planner sweep --resume small"


def test_a_name_that_is_taken_is_refused_with_both_ways_on(small_study, tmp_path):
    RunFolder.create(small_study, root=tmp_path)
    with pytest.raises(ConfigError, match="exists already") as caught:
        RunFolder.create(small_study, root=tmp_path)
    assert caught.value.hint is not None
    assert "--resume small" in caught.value.hint
    assert list_runs(tmp_path) == ["small"]


@pytest.mark.parametrize("name", ["../out", "a/b", "..", "a\\b"])
def test_a_name_that_leaves_the_folder_of_runs_is_refused(small_study, tmp_path, name):
    with pytest.raises(ConfigError, match="without slashes"):
        RunFolder.create(small_study, name, root=tmp_path / "runs")
    assert not [*tmp_path.rglob("study.json")]


def test_an_unknown_run_is_not_found_and_the_closest_is_named(small_study, tmp_path):
    RunFolder.create(small_study, root=tmp_path)
    with pytest.raises(NotFoundError, match="Did you mean 'small'"):
        RunFolder.open("smal", tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(small_study, tmp_path):
    (tmp_path / "runs").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match="cannot write"):
        RunFolder.create(small_study, root=tmp_path / "runs")


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    path.chmod(0o444)
    (tmp_path / "b").mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        write_atomically(tmp_path / "b", "new")
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b"]


def test_a_run_remembers_its_study(small_study, tmp_path):
    folder = RunFolder.create(small_study, root=tmp_path)
    assert RunFolder.open("small", tmp_path).load_study() == small_study
    assert RunFolder.open(str(folder.path)) == folder


def test_the_table_says_which_tokenizer_a_loss_is_of(results):
    config = results.trials[0].config
    with_bpe = {
        **config,
        "data": {**config["data"], "tokenizer": "bpe"},
        "model": {**config["model"], "vocab_size": 512},
    }
    bytes_trial = dataclasses.replace(results.trials[0], val_bits_per_byte=4.0)
    trials = (
        bytes_trial,
        dataclasses.replace(bytes_trial, config=with_bpe),
        results.trials[0],
    )
    frame = dataclasses.replace(results, trials=trials).to_frame()
    assert frame["tokenizer"].fillna("none").tolist() == ["bytes", "bpe-512", "none"]
