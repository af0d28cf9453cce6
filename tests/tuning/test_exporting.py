"""What other tools read back: Optuna its journal, TensorBoard its events."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from planner.costs import resolve_cluster
from planner.results import Results
from planner.study import Study
from planner.trial import TrialState
from planner.tuning import sweep
from planner.tuning.exporting import export_optuna, export_tensorboard
from planner.tuning.simulated import SimulatedExecutor
from planner.tuning.sources import LawSource

MakeStudy = Callable[..., Study]

SPACE: dict[str, Any] = {
    "name": "sizes",
    "parameters": {
        "model": {
            "choice": [
                {"num_layers": 1, "d_model": 16, "num_heads": 1},
                {"num_layers": 2, "d_model": 32, "num_heads": 1},
            ]
        },
        "optimizer.learning_rate": {"loguniform": [1e-4, 1e-2]},
        "batch.sequences_per_step": {"choice": [2, 4]},
    },
}


@pytest.fixture
def results(make_study: MakeStudy, tmp_path: Path) -> Results:
    """Return the results of a simulated study in which trials are cut."""
    search = {
        "algorithm": "random", "num_trials": 12, "max_concurrent": 1, "scheduler": {"name": "asha"},
    }  # fmt: skip
    base: dict[str, Any] = {
        "model": {"sequence_length": 32}, "train": {"tokens": 2048, "num_validations": 4},
    }  # fmt: skip
    study = make_study(search_space=SPACE, search=search, base=base)
    source = LawSource(
        study, resolve_cluster(study.cluster), lambda size, tokens: 2 + 10 / size**0.3 + 9 / tokens**0.3
    )  # fmt: skip
    return sweep(study, executor=SimulatedExecutor(source), root=tmp_path)


def test_optuna_reads_back_every_trial_with_its_settings_and_losses(
    results: Results, tmp_path: Path
) -> None:
    path = export_optuna(results, tmp_path / "optuna.journal")
    export_optuna(results, path)
    read = optuna.load_study(
        study_name="tiny", storage=JournalStorage(JournalFileBackend(str(path)))
    )
    assert [t.user_attrs["trial"] for t in read.trials] == [t.trial for t in results.trials]
    for theirs, ours in zip(read.trials, results.trials, strict=True):
        assert theirs.params["optimizer.learning_rate"] == ours.config["optimizer"]["learning_rate"]
        is_complete = ours.state is TrialState.COMPLETED
        assert theirs.values == ([ours.val_loss] if is_complete else None)
        assert theirs.state.name == ("COMPLETE" if is_complete else "PRUNED")
        assert len(theirs.intermediate_values) == sum(p.trial == ours.trial for p in results.curves)
    best = results.best()
    assert best is not None
    assert read.best_trial.user_attrs["trial"] == best.trial


def events(path: Path) -> Iterator[Any]:
    """Yield the events of a file: records of length, checksum, bytes, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_tensorboard_finds_curves_and_settings_of_every_trial(
    results: Results, tmp_path: Path
) -> None:
    folder = export_tensorboard(results, tmp_path / "tensorboard")
    export_tensorboard(results, folder)
    for trial in results.trials:
        (file,) = (folder / trial.trial).glob("events.out.tfevents.*")
        values = [(e.step, v) for e in events(file) for v in e.summary.value]
        losses = {step: v.simple_value for step, v in values if v.tag == "val_loss"}
        expected = {p.num_steps: p.val_loss for p in results.curves if p.trial == trial.trial}
        assert losses == pytest.approx(expected)
        assert any(v.metadata.plugin_data.plugin_name == "hparams" for _, v in values)
