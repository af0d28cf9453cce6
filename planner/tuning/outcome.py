"""What a sweep looks like from outside: its results, and its progress at a moment."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.budget import Budget, Spend, format_amount
from planner.costs import resolve_cluster
from planner.objectives import violations_of
from planner.results import CurvePoint, Results
from planner.run_folder import RunFolder
from planner.study import Study
from planner.trial import TrialResult, TrialState
from planner.tuning.core import Sweep
from planner.tuning.ledger import Line, read_lines
from planner.tuning.lines import too_large
from planner.tuning.lock import is_locked
from planner.tuning.records import TrialRecord
from planner.tuning.search_summary import SearchSummary, read_summary, summarise
from planner.tuning.searchers import ReplayedSearcher

__all__ = ["OnEvent", "Progress", "Standing", "progress_of", "results_of", "standing_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a sweep stands."""

    event: str
    """Kind of the ledger's line that was written last, such as `report` or `ended`."""
    trial: str | None
    """Trial that the event is about."""
    study: Study
    budget: Budget
    """The study's, with what was added since."""
    spend: Spend
    counts: dict[TrialState, int]
    num_wanted: int | None
    """Feasible trials that the study asks for, where that is known."""
    best: TrialResult | None
    """Trial with the best objective so far, finished or not."""
    running: tuple[TrialResult, ...]
    last: TrialResult | None
    """The trial that the event is about."""
    seconds_left: float | None
    """Estimate of the wall-clock seconds to go, if no further trial is cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where a run stands, as its ledger tells."""

    name: str
    word: str
    """`running`, `interrupted`, `finished`, `gave up` or `not started`."""
    progress: Progress
    num_sessions: int
    correction: float
    """Measured over estimated seconds of its trials."""
    notes: tuple[str, ...]
    summary: SearchSummary
    """Front, importances and gain; empty where they were not asked for."""


OnEvent = Callable[[Progress], None]


def results_of(sweep: Sweep, folder: RunFolder) -> Results:
    """Return the table of a sweep as it stands, with every report of every trial."""
    return Results(
        study=sweep.study,
        trials=tuple(_row(sweep, record) for record in sweep.trials.values()),
        curves=tuple(_curve_point(line) for line in sweep.reports),
        spend=sweep.spend(),
        folder=folder,
        copies=tuple(
            sorted(
                (copy for record in sweep.trials.values() for copy in record.lineage),
                key=lambda copy: (copy.generation, copy.trial),
            )
        ),
    )


def _row(sweep: Sweep, record: TrialRecord) -> TrialResult:
    row = record.result(sweep.now)
    if record.state is not TrialState.PLANNED:
        return row
    if large := too_large(record.num_workers, sweep.num_devices):
        return replace(row, reason=large)
    short = sweep.accounts.shortfall(record, sweep.running, sweep.now)
    if short is None:
        return row
    field, need, free = short
    amounts = f"{format_amount(field, need)}, {format_amount(field, max(free, 0.0))} is left"
    return replace(row, reason=f"the budget does not pay for it: it needs about {amounts}")


def _curve_point(line: Line) -> CurvePoint:
    metrics = line["metrics"]
    return CurvePoint(
        trial=line["trial"],
        attempt=line["attempt"],
        num_steps=metrics.get("num_steps"),
        train_tokens=metrics.get("train_tokens"),
        train_flops=metrics.get("train_flops"),
        val_loss=metrics.get("val_loss"),
        train_loss=metrics.get("train_loss"),
        learning_rate=metrics.get("learning_rate"),
        elapsed_seconds=metrics.get("elapsed_seconds"),
        study_seconds=line["t"],
        spent_device_hours=line["spent_device_hours"],
    )


def progress_of(sweep: Sweep, line: Line) -> Progress:
    """Return where a sweep stands after a line of its ledger."""
    trial = line.get("trial")
    record = sweep.trials.get(trial) if trial else None
    return Progress(
        event=line["kind"],
        trial=trial,
        study=sweep.study,
        budget=sweep.accounts.budget,
        spend=sweep.spend(),
        counts=dict(Counter(r.state for r in sweep.trials.values())),
        num_wanted=sweep.num_wanted,
        best=_best(sweep),
        running=tuple(r.result(sweep.now) for r in sweep.running),
        last=record.result(sweep.now) if record else None,
        seconds_left=_seconds_left(sweep),
    )


def _best(sweep: Sweep) -> TrialResult | None:
    losses = [
        (loss, record.trial)
        for record in sweep.trials.values()
        if record.last and record.state not in (TrialState.DIVERGED, TrialState.FAILED)
        and _is_allowed(sweep, record)
        and (loss := sweep.loss(record)) is not None
    ]  # fmt: skip
    return sweep.trials[min(losses)[1]].result(sweep.now) if losses else None


def _is_allowed(sweep: Sweep, record: TrialRecord) -> bool:
    """Return whether a trial keeps the study's constraints, as far as is known."""
    constraints = sweep.study.constraints
    if not constraints:
        return True
    return max(violations_of(constraints, record.result(sweep.now))) <= 0.0


def _seconds_left(sweep: Sweep) -> float | None:
    """Return remaining device-seconds over the devices in use, or what the budget allows if less."""
    accounts, running = sweep.accounts, sweep.running
    correction = accounts.correction(running)
    known = running + sweep.waiting
    hours = [accounts.need(record, "device_hours", correction, sweep.now) for record in known]
    if sweep.is_stopping:
        return 0.0
    rejected = sum(r.state is TrialState.INFEASIBLE for r in sweep.trials.values())
    counted = 0 if sweep.study.search.algorithm == "grid" else rejected
    further = max(0, (sweep.num_wanted or 0) - len(sweep.trials) + counted)
    planned = [r.planned.device_hours for r in sweep.trials.values() if r.planned]
    if not planned:
        return None
    total = sum(hours) + further * correction * sum(planned) / len(planned)
    left = accounts.budget.remaining(sweep.spend())
    total = min(total, left.get("device_hours", total))
    seconds = total * 3600.0 / min(sweep.num_devices, sweep.study.search.max_concurrent or 10**9)
    return max(0.0, min(seconds, left.get("seconds", seconds)))


def standing_of(folder: RunFolder, *, with_summary: bool = False) -> Standing:
    """Return where a run stands, from its ledger alone; nothing is changed.

    Args:
        folder: The run.
        with_summary: Whether to work out front, importances and gain, which takes a second. Where
            optuna is not installed they are what the sweep wrote at its end.

    Raises:
        TrialError: The ledger is damaged.
    """
    study = folder.load_study()
    lines = read_lines(folder.ledger)
    sweep = Sweep(
        study, resolve_cluster(study.cluster), write=_write_nothing, searcher=ReplayedSearcher()
    )
    sweep.replay(lines)
    return Standing(
        name=folder.name,
        word=_word(sweep, lines, is_locked(folder.path)),
        progress=progress_of(sweep, lines[-1] if lines else {"kind": "header"}),
        num_sessions=sweep.num_sessions,
        correction=sweep.accounts.correction(sweep.running),
        notes=tuple(line["text"] for line in lines if line["kind"] == "note"),
        summary=_summary(sweep, folder) if with_summary else SearchSummary(),
    )


def _summary(sweep: Sweep, folder: RunFolder) -> SearchSummary:
    if importlib.util.find_spec("optuna") is None:
        return read_summary(folder)
    return summarise(results_of(sweep, folder))


def _write_nothing(line: Line, durable: bool) -> None:
    """Keep nothing: a ledger is only read."""


def _word(sweep: Sweep, lines: list[Line], is_driven: bool) -> str:
    if is_driven:
        return "running"
    if not lines:
        return "not started"
    if sweep.give_up is not None:
        return "gave up"
    kinds = [line["kind"] for line in lines]
    session = kinds[-1 - kinds[::-1].index("session") :] if "session" in kinds else []
    is_whole = kinds[-1] == "session_ended" and "interrupted" not in session
    return "finished" if is_whole and not sweep.running else "interrupted"
