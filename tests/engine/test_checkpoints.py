"""Checkpoints: exact under one layout, the same training under any other, safe against damage."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil

import pytest
import torch

from planner.engine import train
from planner.engine.checkpoint import Checkpoints, Saved, load_newest
from planner.engine.parallel.workers import Workers
from planner.errors import ConfigError, TrialError
from planner.trial import TrialState

LAYOUTS = {
    "single": {},
    "zero-1": {"shard_parallel": 2, "zero_stage": 1},
    "zero-3": {"shard_parallel": 2},
    "tp": {"tensor_parallel": 2},
    "pp": {"pipeline_parallel": 2},
}
STOP_AFTER = 2  # reports, of 5


def stopping(after):
    seen = []

    def on_metrics(report):
        seen.append(report)
        return len(seen) < after

    return on_metrics


@pytest.fixture(scope="module")
def resumed(settings, small, gang, tmp_path_factory):
    """Reports of every trial that stopped under one layout and went on under another, by both names.

    The uninterrupted ones are there under their layout and None.
    """
    folder = tmp_path_factory.mktemp("layouts")
    names = [name for name in LAYOUTS if name != "single"]

    def run_alone(**more):
        reports = []
        train(small(), on_metrics=reports.append, **more)
        return reports

    train(small(), checkpoint_dir=folder / "single", on_metrics=stopping(STOP_AFTER))
    plain = {name: {"config": settings(layout=LAYOUTS[name])} for name in names}
    orders = {(name, None): plain[name] for name in names}
    for name in names:
        orders[name, name, "saves"] = plain[name] | {
            "checkpoint_dir": str(folder / name), "stop_after": STOP_AFTER,
        }  # fmt: skip
    orders["pp", "pp, larger batch"] = {
        "config": settings(
            layout=LAYOUTS["pp"], batch={"sequences_per_step": 24, "micro_batch_sequences": 4}
        ),
        "checkpoint_dir": str(folder / "larger"), "copy": [str(folder / "pp"), str(folder / "larger")],
    }  # fmt: skip
    for source, target in itertools.product(LAYOUTS, names):
        copy = str(folder / f"{source} to {target}")
        orders[source, target] = plain[target] | {
            "checkpoint_dir": copy, "copy": [str(folder / source), copy],
        }  # fmt: skip
    outcomes = zip(orders, gang(list(orders.values()), 2), strict=True)
    found = {pair: outcome["reports"] for pair, outcome in outcomes}
    found["single", None] = run_alone()
    for source in LAYOUTS:
        copy = folder / f"{source} to single"
        shutil.copytree(folder / source, copy)
        found[source, "single"] = run_alone(checkpoint_dir=copy)
    return found


def losses_of(reports):
    return [report[key] for report in reports for key in ("train_loss", "val_loss")]


@pytest.mark.slow
@pytest.mark.parametrize("source", LAYOUTS)
def test_what_any_layout_saved_any_other_continues(source, resumed):
    expected = losses_of(resumed["single", None][STOP_AFTER:])
    for target in LAYOUTS:
        assert losses_of(resumed[source, target]) == pytest.approx(expected, abs=1e-5), target


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_that_goes_on_equals_itself_uninterrupted_bit_for_bit(name, resumed):
    whole = losses_of(resumed[name, None])
    assert len(whole) == 10
    assert losses_of(resumed[name, name]) == whole[2 * STOP_AFTER :]


@pytest.mark.slow
def test_a_pipeline_goes_on_with_another_batch_in_whole_steps(resumed):
    last = resumed["pp", "pp, larger batch"][-1]
    assert (last["num_steps"], last["train_tokens"]) == (4 + 2, (32 + 2 * 24) * 16)


@pytest.mark.parametrize("background", [False, True], ids=["at once", "in the background"])
def test_a_resumed_trial_equals_the_uninterrupted_one_bit_for_bit(small, tmp_path, background):
    config = small(model={"dropout": 0.1}, execution={"background_checkpoints": background})
    whole, resumed = [], []
    train(config, on_metrics=whole.append)
    first = train(config, on_metrics=stopping(STOP_AFTER), checkpoint_dir=tmp_path)
    last = train(config, on_metrics=resumed.append, checkpoint_dir=tmp_path)
    assert first.state is TrialState.STOPPED
    assert last.state is TrialState.COMPLETED
    for key in ("val_loss", "train_loss", "num_steps", "train_flops"):
        assert [r[key] for r in resumed] == [r[key] for r in whole[STOP_AFTER:]]


def test_resuming_a_finished_trial_gives_its_result_again(small, tmp_path):
    before = train(small(), checkpoint_dir=tmp_path)
    reports = []
    after = train(small(), checkpoint_dir=tmp_path, on_metrics=reports.append)
    assert reports == []
    assert (after.state, after.val_loss) == (TrialState.COMPLETED, before.val_loss)


def test_seconds_of_former_attempts_count(small, tmp_path):
    first = train(small(), on_metrics=stopping(1), checkpoint_dir=tmp_path)
    second = train(small(), checkpoint_dir=tmp_path)
    assert second.elapsed_seconds > first.train_seconds
    assert second.train_seconds > first.train_seconds


def test_a_checkpoint_of_another_model_is_refused(small, tmp_path):
    train(small(), checkpoint_dir=tmp_path, on_metrics=stopping(1))
    with pytest.raises(ConfigError, match="same model"):
        train(small(model={"num_layers": 2}), checkpoint_dir=tmp_path)


def test_a_truncated_checkpoint_is_refused_and_the_one_before_still_works(small, tmp_path):
    train(small(), checkpoint_dir=tmp_path, on_metrics=stopping(3))
    newest = sorted(tmp_path.glob("step-*"))[-1]
    tensors = newest / "tensors.pt"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(TrialError, match="must be whole"):
        train(small(), checkpoint_dir=tmp_path)
    shutil.rmtree(newest)
    assert train(small(), checkpoint_dir=tmp_path).state is TrialState.COMPLETED


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("file", ["tensors.pt", ".metadata"])
def test_a_hostile_checkpoint_is_refused_and_runs_nothing(small, tmp_path, file):
    train(small(), checkpoint_dir=tmp_path / "saved", on_metrics=stopping(1))
    (newest,) = (tmp_path / "saved").glob("step-*")
    trap = tmp_path / "trap"
    (newest / "tensors.pt").unlink()
    if file == "tensors.pt":
        torch.save({"model.norm.weight": Hostile(trap)}, newest / file)
    else:
        (newest / file).write_bytes(pickle.dumps(Hostile(trap)))
    state = json.loads((newest / "state.json").read_text())
    state["files"] = {file: (newest / file).stat().st_size}
    (newest / "state.json").write_text(json.dumps(state))
    with pytest.raises(TrialError, match="hold tensors alone"):
        train(small(), checkpoint_dir=tmp_path / "saved")
    assert not trap.exists()


def test_what_a_kill_during_a_save_leaves_behind_does_no_harm(small, tmp_path):
    train(small(), checkpoint_dir=tmp_path, on_metrics=stopping(2))
    halfway = tmp_path / ".writing-00000006"
    halfway.mkdir()
    (halfway / "tensors.pt").write_bytes(b"half")
    reports = []
    result = train(small(), checkpoint_dir=tmp_path, on_metrics=reports.append)
    assert result.state is TrialState.COMPLETED
    assert reports[0]["num_steps"] == 6


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_another_layout_left_half_written_is_no_part_of_the_next_checkpoint(tmp_path):
    halfway = tmp_path / ".writing-00000002"
    halfway.mkdir()
    (halfway / "tensors.pt").write_bytes(b"half")
    workers = Workers(rank=0, world_size=1, device=torch.device("cpu"))
    in_parts = Checkpoints(tmp_path, workers, in_parts=True, in_background=False)
    saved = Saved(
        step=2, sequences=2, train_seconds=1.0, elapsed_seconds=1.0, first_loss=1.0,
        corpus_hash="", model={}, seed=0,
    )  # fmt: skip
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.SGD([parameter])
    in_parts.save(saved, [("w", parameter)], optimizer, {})
    other = torch.nn.Parameter(torch.zeros(2, 3))
    load_newest(tmp_path, [("w", other)], torch.optim.SGD([other]), {}, lambda _: None)
    assert torch.equal(other, parameter)


def test_a_checkpoint_that_cannot_be_written_is_said_and_keeps_the_last(small, tmp_path):
    train(small(), checkpoint_dir=tmp_path, on_metrics=stopping(2))
    kept = sorted(path.name for path in tmp_path.glob("step-*"))
    (tmp_path / ".writing-00000006").write_text("a file where the folder should be")
    with pytest.raises(TrialError, match="the checkpoint of step 6 could not be written"):
        train(small(), checkpoint_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == kept
