"""A run as other tools read it: an Optuna journal for its dashboard, and TensorBoard's HParams.

Loading this module loads optuna; writing for TensorBoard loads tensorboardX, which Ray Tune brings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState as OptunaState

from planner.objectives import violations_of
from planner.results import CurvePoint, Results
from planner.search_space import Distribution
from planner.trial import TrialResult, TrialState
from planner.tuning.translation import interval_of
from planner.tuning.warm_start import point_of

__all__ = ["export_optuna", "export_tensorboard"]

_STATES: Final = {
    TrialState.COMPLETED: OptunaState.COMPLETE,
    TrialState.STOPPED: OptunaState.PRUNED,
    TrialState.RUNNING: OptunaState.RUNNING,
    TrialState.PLANNED: OptunaState.WAITING,
}
"""All others are failures to Optuna."""
_ATTRIBUTES: Final = (
    "reason", "num_workers", "num_params", "train_tokens", "train_flops", "val_loss",
    "peak_memory_bytes", "tokens_per_second", "elapsed_seconds", "device_hours", "usd", "kwh",
)  # fmt: skip
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""Beginning of the study's clock in an export, where only differences mean anything."""


def export_optuna(results: Results, path: Path) -> Path:
    """Write a run as a study in an Optuna journal, and return the file.

    `optuna-dashboard FILE` shows it. Choices of mappings are shown as text, everything else as it
    is. The study's name is that of the run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    study = results.study
    theirs = optuna.create_study(
        study_name=results.folder.name,
        storage=JournalStorage(JournalFileBackend(str(path))),
        directions=["minimize" if o.mode == "min" else "maximize" for o in study.objective],
    )
    theirs.set_user_attr("question", study.question)
    theirs.set_user_attr("objective", [o.metric for o in study.objective])
    curves = _curves_of(results)
    shown = {name: _shown_distribution(d) for name, d in study.search_space.parameters.items()}
    theirs.add_trials(
        [_frozen(results, trial, curves.get(trial.trial, []), shown) for trial in results.trials]
    )
    return path


def _curves_of(results: Results) -> dict[str, list[CurvePoint]]:
    """Return the reports by trial."""
    curves: dict[str, list[CurvePoint]] = {}
    for point in results.curves:
        curves.setdefault(point.trial, []).append(point)
    return curves


def _frozen(
    results: Results,
    trial: TrialResult,
    curve: list[CurvePoint],
    shown: Mapping[str, BaseDistribution],
) -> optuna.trial.FrozenTrial:
    study = results.study
    state = _STATES.get(trial.state, OptunaState.FAIL)
    values = [getattr(trial, objective.metric) for objective in study.objective]
    if state is OptunaState.COMPLETE and None in values:
        state = OptunaState.FAIL
    point = point_of(study, trial) or {}
    metric = study.first_objective.metric
    reports = {
        number.num_steps: getattr(number, metric)
        for number in curve
        if number.num_steps is not None and _is_finite(getattr(number, metric, None))
    }
    measured = {name: getattr(trial, name) for name in _ATTRIBUTES}
    violations = violations_of(study.constraints, trial)
    frozen = optuna.trial.create_trial(
        state=state,
        values=values if state is OptunaState.COMPLETE else None,
        params={name: _shown_value(value) for name, value in point.items()},
        distributions={name: shown[name] for name in point},
        user_attrs={"trial": trial.trial, "state": str(trial.state)}
        | {name: value for name, value in measured.items() if value is not None},
        intermediate_values=reports if len(values) == 1 else {},
        constraints={str(c): v for c, v in zip(study.constraints, violations, strict=True)},
    )
    times = [p.study_seconds for p in curve if p.study_seconds is not None]
    if times and state is not OptunaState.WAITING:
        begun = _EPOCH + timedelta(seconds=min(times) - (curve[0].elapsed_seconds or 0.0))
        frozen.datetime_start = begun.replace(tzinfo=None)
        if state.is_finished():
            ended = _EPOCH + timedelta(seconds=max(times))
            frozen.datetime_complete = ended.replace(tzinfo=None)
    return frozen


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _shown_distribution(distribution: Distribution) -> BaseDistribution:
    if distribution.choice is not None:
        return CategoricalDistribution([_shown_value(value) for value in distribution.choice])
    return interval_of(distribution)


def _shown_value(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def export_tensorboard(results: Results, folder: Path) -> Path:
    """Write a run for TensorBoard, and return the folder: curves by step, and HParams.

    `tensorboard --logdir FOLDER` shows it. Trials without a point or a value of the objectives have
    no row in HParams.
    """
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.rglob("events.out.tfevents.*")):
        old.unlink()
    study = results.study
    curves = _curves_of(results)
    for trial in results.trials:
        reports, settings = curves.get(trial.trial, []), point_of(study, trial)
        metrics = {
            f"hparam/{o.metric}": float(value)
            for o in study.objective
            if (value := getattr(trial, o.metric)) is not None
        }
        if not reports and not metrics:
            continue
        with SummaryWriter(logdir=str(folder / trial.trial)) as writer:
            if settings is not None and metrics:
                shown = {name: _shown_value(value) for name, value in settings.items()}
                for summary in hparams(shown | {"state": str(trial.state)}, metrics):
                    writer.file_writer.add_summary(summary)
                for name, value in metrics.items():
                    writer.add_scalar(name, value)
            for report in reports:
                for name in ("val_loss", "train_loss", "learning_rate"):
                    value = getattr(report, name)
                    if _is_finite(value):
                        writer.add_scalar(name, value, report.num_steps)
    return folder
