"""Results: the table of trials with fixed, named, typed columns, and its Parquet and CSV files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from planner.budget import Spend
from planner.costs import ClusterConfig, resolve_cluster
from planner.errors import ConfigError, NotFoundError
from planner.objectives import violations_of
from planner.run_folder import RunFolder, list_runs
from planner.search_space import value_at
from planner.study import Study
from planner.trial import BPE, TrialResult, TrialState

if TYPE_CHECKING:
    from planner.costs.measured import Measured

__all__ = ["Copy", "CurvePoint", "Results", "read_measured", "read_results", "setting_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """One report of one trial, in the order of the ledger."""

    trial: str
    attempt: int
    num_steps: int | None = None
    train_tokens: int | None = None
    train_flops: float | None = None
    val_loss: float | None = None
    train_loss: float | None = None
    learning_rate: float | None = None
    elapsed_seconds: float | None = None
    study_seconds: float | None = None
    """Wall-clock seconds of the study when the report arrived."""
    spent_device_hours: float | None = None
    """Device-hours of the whole study when the report arrived."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """One member of a population going on from another's checkpoint."""

    trial: str
    donor: str
    generation: int
    """Meeting of the population, counted from 1."""
    train_flops: float
    """Compute that the donor had reached."""
    fidelity: float
    """The same as a share of a whole trial."""
    study_seconds: float
    loss: float | None
    """First objective of the member before it copied, turned so that small is good."""
    donor_loss: float | None
    changed: dict[str, Any]
    """Setting -> [the donor's value, the member's from here on]."""

    def __str__(self) -> str:
        return f"copied {self.donor} at {self.fidelity:.0%}"


_INTEGERS: Final = frozenset(
    {"generation", "num_workers", "num_params", "num_params_non_embedding", "train_tokens", "num_steps",
     "num_attempts", "attempt"}
)  # fmt: skip
_ASKED: Final = (
    "learning_rate", "tokens_per_step", "unique_tokens", "tokenizer", "schedule_name",
    "warmup_fraction",
)  # fmt: skip
_TEXTS: Final = frozenset(
    {"donor", "changed", "trial", "state", "reason", "config", "metrics", "point", "energy_source",
     "tokenizer", "schedule_name"}
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """What a sweep found and what it spent."""

    study: Study
    trials: tuple[TrialResult, ...]
    curves: tuple[CurvePoint, ...]
    spend: Spend
    """Everything that was burnt: finished, stopped, failed and lost attempts."""
    folder: RunFolder
    copies: tuple[Copy, ...] = ()
    """Who copied whom in a population, in the order in which it happened."""

    def count(self, state: TrialState) -> int:
        """Return how many trials ended in a state."""
        return sum(trial.state is state for trial in self.trials)

    def best(self) -> TrialResult | None:
        """Return the completed trial with the best first objective that keeps the constraints."""
        objective = self.study.first_objective
        ranked = [
            (objective.cost(float(value)), trial.trial, trial)
            for trial in self.completed()
            if (value := getattr(trial, objective.metric)) is not None
        ]
        return min(ranked, key=lambda each: each[:2])[2] if ranked else None

    def completed(self) -> list[TrialResult]:
        """Return the completed trials that keep the study's constraints."""
        constraints = self.study.constraints
        return [
            trial
            for trial in self.trials
            if trial.state is TrialState.COMPLETED
            and max(violations_of(constraints, trial), default=0.0) <= 0.0
        ]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per trial: what varied first, then the columns of TrialResult."""
        names = list(self.study.search_space.parameters)
        return trials_frame(self.trials, names)

    def curves_frame(self) -> pd.DataFrame:
        """Return one row per report."""
        return _typed(pd.DataFrame([asdict(p) for p in self.curves], columns=_columns(CurvePoint)))

    def write(self) -> None:
        """Write `results.parquet`, `curves.parquet` and `lineage.parquet` into the run folder.

        Raises:
            ConfigError: The folder cannot be written.
        """
        self.folder.write("results.parquet", _parquet(self.to_frame()))
        self.folder.write("curves.parquet", _parquet(self.curves_frame()))
        if self.copies:
            rows = [asdict(c) | {"changed": json.dumps(c.changed)} for c in self.copies]
            frame = _typed(pd.DataFrame(rows, columns=_columns(Copy)))
            self.folder.write("lineage.parquet", _parquet(frame))
        self.folder.write("spend.json", json.dumps(asdict(self.spend), indent=2))


def _columns(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with one fixed nullable type per named column."""
    kinds = {
        name: "string" if name in _TEXTS else "Int64" if name in _INTEGERS else "Float64"
        for name in frame.columns
    }
    return frame.astype(kinds)


def trials_frame(trials: Iterable[TrialResult], parameters: Sequence[str]) -> pd.DataFrame:
    """Return one row per trial: what varied, the columns of TrialResult, then what fits ask for.

    The last are `learning_rate`, `tokens_per_step`, `unique_tokens`, `tokenizer`, `schedule_name` and
    `warmup_fraction`, also where they were fixed.
    """
    kept = list(trials)
    rows = [
        asdict(trial)
        | {
            "config": json.dumps(trial.config),
            "metrics": json.dumps(trial.metrics),
            "point": json.dumps(trial.point),
            "state": str(trial.state),
        }
        for trial in kept
    ]
    table = _typed(pd.DataFrame(rows, columns=_columns(TrialResult)))
    varied = pd.DataFrame(
        {name: [_cell(setting_of(trial, name)) for trial in kept] for name in parameters}
    )
    asked = _typed(pd.DataFrame([_asked_of(trial) for trial in kept], columns=[*_ASKED]))
    rest = table.drop(columns=["trial", "state"])
    return pd.concat([table[["trial", "state"]], varied, rest, asked], axis=1)


def _asked_of(trial: TrialResult) -> dict[str, object]:
    """Return what a fit asks of a row besides size, tokens and loss."""
    steps_of = (("batch", "sequences_per_step"), ("model", "sequence_length"))
    factors = [trial.config.get(group, {}).get(name) for group, name in steps_of]
    return {
        "learning_rate": value_at(trial.config, "optimizer.learning_rate"),
        "tokens_per_step": None if None in factors else prod(factors),
        "unique_tokens": trial.metrics.get("unique_tokens"),
        "tokenizer": _tokenizer(trial),
        "schedule_name": value_at(trial.config, "schedule.name"),
        "warmup_fraction": value_at(trial.config, "schedule.warmup_fraction"),
    }


def _tokenizer(trial: TrialResult) -> str | None:
    """Return how a trial's text became tokens; None for images and for files of tokens."""
    if trial.val_bits_per_byte is None:
        return None
    name = value_at(trial.config, "data.tokenizer")
    vocabulary = value_at(trial.config, "model.vocab_size")
    return f"{name}-{vocabulary}" if name == BPE else None if name is None else str(name)


def setting_of(trial: TrialResult, name: str) -> object:
    """Return a setting of a trial as it was resolved, else as the search chose it, else None."""
    value = value_at(trial.config, name)
    return trial.point.get(name) if value is None else value


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, dict | list) else value


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def read_results(folder: RunFolder) -> Results:
    """Return the results that a finished sweep wrote.

    Raises:
        NotFoundError: The sweep has not written any.
        ConfigError: A file of them is missing or damaged.
    """
    if not folder.results.is_file():
        raise NotFoundError(
            f"run {folder.name!r} has no results yet.",
            hint=f"Finish the sweep: planner sweep --resume {folder.name}",
        )
    study = folder.load_study()
    try:
        return Results(
            study=study,
            trials=tuple(_trial(row) for row in _rows(folder.results, TrialResult)),
            curves=tuple(CurvePoint(**row) for row in _rows(folder.curves, CurvePoint)),
            spend=Spend(**json.loads(folder.spend.read_text(encoding="utf-8"))),
            folder=folder,
            copies=_read_copies(folder),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(
            f"the results of run {folder.name!r} are damaged: {why}",
            hint=f"Write them again from its ledger: planner sweep --resume {folder.name}",
        ) from error


def read_measured(cluster: ClusterConfig, root: Path | None = None) -> Measured | None:
    """Return what the finished runs of a folder measured on a cluster of the same description.

    The same: device, devices per node and overrides. Runs are taken in the order of their names; one that no longer reads is left out. None where fewer than three trials measured anything.
    """
    runs: list[tuple[str, tuple[TrialResult, ...]]] = []
    for name in list_runs(root):
        folder = RunFolder.open(name, root)
        try:
            if folder.results.is_file() and _machine(folder.load_study().cluster) == _machine(
                cluster
            ):
                runs.append((name, read_results(folder).trials))
        except (ConfigError, OSError, ValueError, KeyError):
            continue
    if not runs:
        return None
    from planner.costs.measured import calibrate_on_runs

    return calibrate_on_runs(runs, resolve_cluster(cluster))


def _machine(cluster: ClusterConfig) -> tuple[object, ...]:
    """Return what a cluster's description says of how fast its devices are."""
    return cluster.device, cluster.devices_per_node, cluster.device_overrides


def _read_copies(folder: RunFolder) -> tuple[Copy, ...]:
    if not folder.lineage.is_file():
        return ()
    rows = _rows(folder.lineage, Copy)
    return tuple(Copy(**row | {"changed": json.loads(row["changed"])}) for row in rows)


def _rows(path: Path, kind: type[Any]) -> list[dict[str, Any]]:
    frame = pd.read_parquet(path)[_columns(kind)]
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in frame.astype(object).to_dict("records")
    ]


def _trial(row: dict[str, Any]) -> TrialResult:
    return TrialResult(
        **row
        | {
            "config": json.loads(row["config"]),
            "metrics": json.loads(row["metrics"]),
            "point": json.loads(row["point"]),
            "state": TrialState(row["state"]),
        }
    )
