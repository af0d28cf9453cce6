"""Estimates of the rows of a table, and the rows as measured trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from planner.costs.flops import shape_flops_per_token
from planner.costs.memory import GPU_MEMORY, MemoryConstants, memory_use
from planner.costs.speed import default_interval, step_time
from planner.costs.tables import TableRow, UnreadRow

if TYPE_CHECKING:
    from planner.costs.calibration import Calibration, MeasuredTrial

__all__ = ["RowScore", "calibrate_by_cluster", "memory_constants_of", "score_table", "trial_of"]

FRAGMENTATION: Final = 1.08
"""Reserved over allocated activations: 5-10 % in practice."""
ALLOCATOR_BYTES: Final = 1.5e7
"""Batches, random states and the like inside the allocator, beside states, activations and workspaces."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowScore:
    """The estimate of one row."""

    row_id: str
    step_seconds: float
    step_seconds_lower: float
    step_seconds_upper: float
    memory_bytes: float
    fits: bool
    mfu: float
    confidence: str
    confidence_reason: str


def cluster_key(row: TableRow) -> tuple[str, str]:
    """Return what stands for one cluster in a table: a source and a device."""
    return row.source, row.cluster.device.name


def calibrate_by_cluster(
    rows: Sequence[TableRow | UnreadRow],
) -> dict[tuple[str, str], Calibration]:
    """Return a calibration for every cluster with measured rows; clusters are never mixed."""
    from planner.costs.calibration import calibrate

    groups: dict[tuple[str, str], list[MeasuredTrial]] = {}
    for row in rows:
        if isinstance(row, TableRow) and (row.step_seconds or row.memory_bytes):
            groups.setdefault(cluster_key(row), []).append(trial_of(row))
    return {key: calibrate(trials) for key, trials in groups.items()}


def score_table(
    rows: Sequence[TableRow | UnreadRow],
    calibrations: Mapping[tuple[str, str], Calibration] | None = None,
) -> list[RowScore]:
    """Return the estimate of every row that was read, calibrated where its cluster is."""
    found = calibrations or {}
    return [_score(row, found.get(cluster_key(row))) for row in rows if isinstance(row, TableRow)]


def _score(row: TableRow, calibration: Calibration | None) -> RowScore:
    w, cluster = row.workload, row.cluster
    if calibration is None:
        seconds = float(step_time(w, cluster).total)
        lower, upper = (float(x) for x in default_interval(w, seconds))
        memory = float(memory_use(w, memory_constants_of(row)).total)
    else:
        found = calibration.predict(w, cluster)
        seconds, lower, upper = (float(x[0]) for x in (found.value, found.lower, found.upper))
        memory = float(calibration.predict_memory(w).value[0])
    weak = [row.weak] if row.weak else []
    weak += calibration.warnings(w) if calibration is not None else ()
    is_timed = calibration is not None and calibration.num_trials > 0
    per_token = shape_flops_per_token(row.shape)
    peak = cluster.device.peak_flops_per_second(row.precision) * float(w.num_devices)
    return RowScore(
        row_id=row.row_id,
        step_seconds=seconds,
        step_seconds_lower=lower,
        step_seconds_upper=upper,
        memory_bytes=memory,
        fits=memory <= cluster.usable_memory_bytes,
        mfu=float(w.step_tokens) * per_token / (seconds * peak),
        confidence="low" if weak else "high" if is_timed else "medium",
        confidence_reason="; ".join(weak),
    )


def memory_constants_of(row: TableRow) -> MemoryConstants:
    """Return the constants of memory for the way in which a row's memory was read.

    Bars of states and activations hold no overhead; the allocator's figure no runtime context; its
    reserved figure fragmentation; the console everything. Megatron logs the figure of its last rank,
    which is on the last pipeline stage (`_set_tensorboard_writer` of Megatron-LM).
    """
    kind = row.memory_kind
    if "bars" in kind or "analytic" in kind:
        return replace(GPU_MEMORY, overhead_bytes=1.0)
    if "allocated" in kind:
        last = "rank logged" in kind
        return replace(GPU_MEMORY, overhead_bytes=ALLOCATOR_BYTES, last_stage_only=last)
    if "reserved" in kind or "smi" in kind or "console" in kind:
        return replace(GPU_MEMORY, activation_factor=FRAGMENTATION)
    return GPU_MEMORY


def trial_of(row: TableRow) -> MeasuredTrial:
    """Return a row as a measured trial that calibration reads."""
    from planner.costs.calibration import MeasuredTrial

    return MeasuredTrial(
        workload=row.workload,
        cluster=row.cluster,
        step_seconds=row.step_seconds,
        memory_bytes=row.memory_bytes,
        memory_prior=memory_constants_of(row),
    )
