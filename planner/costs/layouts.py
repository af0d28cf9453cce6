"""The best ways to lay a model over a cluster: reject candidates with the reason, rank the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from planner.costs.candidates import RULES, LayoutProblem, broken_rules, enumerate_layouts, take
from planner.costs.cluster import Cluster
from planner.costs.memory import MemoryConstants, default_memory, memory_use
from planner.costs.speed import Efficiency, default_efficiency, step_time
from planner.costs.workload import RECOMPUTE, Array, Workload
from planner.errors import InfeasibleError
from planner.units import format_bytes

if TYPE_CHECKING:
    from planner.costs.calibration import Calibration

__all__ = ["LayoutChoice", "LayoutSearch", "evaluate", "precisions_of", "search_layouts"]

_CHUNK: Final = 8_192
"""Candidates evaluated at a time; their arrays stay in the cache."""
_RANKED_ANEW: Final = 2_048
"""Fastest candidates by the closed form that a calibration's residual ranks again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutChoice:
    """One layout with its cost; seconds per step, bytes per device."""

    data_parallel: int
    shard_parallel: int
    zero_stage: int
    tensor_parallel: int
    sequence_parallel: bool
    pipeline_parallel: int
    virtual_pipeline: int
    context_parallel: int
    expert_parallel: int
    micro_batch_sequences: int
    num_micro_batches: int
    activation_checkpointing: str
    precision: str
    step_seconds: float
    memory_bytes: float
    step_breakdown_seconds: dict[str, float]
    memory_breakdown_bytes: dict[str, float]
    workload: Workload

    def __str__(self) -> str:
        """Return the degrees above one as people write them."""
        names = (
            ("DP", self.data_parallel), ("TP", self.tensor_parallel), ("PP", self.pipeline_parallel),
            ("VP", self.virtual_pipeline), ("CP", self.context_parallel), ("EP", self.expert_parallel),
        )  # fmt: skip
        degrees = [f"{name}{degree}" for name, degree in names if degree > 1]
        if self.shard_parallel > 1:
            degrees.insert(0, f"ZeRO-{self.zero_stage}x{self.shard_parallel}")
        return " ".join(degrees) or "one device"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutSearch:
    """The best layouts, and how many were rejected for which rule."""

    num_candidates: int
    num_feasible: int
    best: tuple[LayoutChoice, ...]
    rejected: tuple[tuple[str, int], ...]
    """Rule and number of candidates that break it first, most frequent first."""


_MEMORY_RULE: Final = "memory of a device suffices"


def evaluate(
    w: Workload, size: int, cluster: Cluster, memory: MemoryConstants, efficiency: Efficiency
) -> tuple[Array, Array]:
    """Return bytes per device and seconds per step of many candidates, chunk by chunk."""
    peak, seconds = np.empty(size), np.empty(size)
    for start in range(0, size, _CHUNK):
        part = slice(start, min(start + _CHUNK, size))
        chunk = take(w, part)
        peak[part] = memory_use(chunk, memory).total
        seconds[part] = step_time(chunk, cluster, efficiency).total
    return peak, seconds


def search_layouts(
    problem: LayoutProblem, *, num_best: int = 5, calibration: Calibration | None = None
) -> LayoutSearch:
    """Return the fastest feasible layouts, one per set of degrees.

    Raises:
        InfeasibleError: No layout fits; the message says what the smallest change is that does.
    """
    cluster = problem.cluster
    for precision in problem.precisions:
        cluster.device.peak_flops_per_second(precision)
    memory = calibration.memory if calibration else default_memory(cluster)
    efficiency = calibration.efficiency if calibration else default_efficiency(cluster)
    everything, which = enumerate_layouts(problem)
    size = len(which)
    if not size:
        raise InfeasibleError(
            f"sequences_per_step must be a multiple of the data-parallel workers: "
            f"{problem.sequences_per_step} sequences on {cluster} leave no layout.",
            hint=f"Use a multiple of {cluster.num_devices}, or fewer devices.",
        )
    broken = broken_rules(problem, everything, size)
    allowed = np.flatnonzero(broken < 0)
    peak, seconds = evaluate(take(everything, allowed), len(allowed), cluster, memory, efficiency)
    fits = peak <= cluster.usable_memory_bytes
    rejected = _count_rejections(broken, int((~fits).sum()))
    if not fits.any():
        raise _nothing_fits(problem, peak, num_best, calibration)
    order = allowed[fits][np.argsort(seconds[fits], kind="stable")]
    if calibration is not None:
        order = _as_measured(everything, order, cluster, calibration)
    best = _distinct(problem, everything, which, order, num_best)
    return LayoutSearch(
        num_candidates=size,
        num_feasible=int(fits.sum()),
        best=tuple(_choice(problem, w, p, memory, efficiency, calibration) for w, p in best),
        rejected=rejected,
    )


def _as_measured(
    everything: Workload,
    order: npt.NDArray[np.int64],
    cluster: Cluster,
    calibration: Calibration,
) -> npt.NDArray[np.int64]:
    """Return the order with the fastest candidates ranked anew by what trials showed beside the constants."""
    first = order[:_RANKED_ANEW]
    seconds = calibration.predict(take(everything, first), cluster).value
    seconds = np.broadcast_to(seconds, first.shape)
    return np.concatenate([first[np.argsort(seconds, kind="stable")], order[_RANKED_ANEW:]])


def _count_rejections(broken: npt.NDArray[np.int64], too_large: int) -> tuple[tuple[str, int], ...]:
    counts = {rule: int((broken == i).sum()) for i, rule in enumerate(RULES)}
    counts[_MEMORY_RULE] = too_large
    return tuple(sorted(((r, n) for r, n in counts.items() if n), key=lambda item: -item[1]))


def _distinct(
    problem: LayoutProblem,
    everything: Workload,
    which: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    num_best: int,
) -> list[tuple[Workload, str]]:
    """Return the fastest candidate of each set of degrees, fastest first."""
    found: dict[tuple[float, ...], tuple[Workload, str]] = {}
    for i in order[:5000]:
        w = take(everything, np.array([i]))
        key = tuple(
            float(np.ravel(x)[0]) for x in (w.data, w.tensor, w.pipeline, w.context, w.expert)
        )
        if key not in found:
            found[key] = (w, problem.precisions[which[i]])
            if len(found) == num_best:
                break
    return list(found.values())


def _choice(
    problem: LayoutProblem,
    w: Workload,
    precision: str,
    memory: MemoryConstants,
    e: Efficiency,
    calibration: Calibration | None,
) -> LayoutChoice:
    use, time = memory_use(w, memory), step_time(w, problem.cluster, e)
    seconds = float(time.total[0])
    if calibration is not None:
        seconds = float(calibration.predict(w, problem.cluster).value[0])
    scale = seconds / float(time.total[0])
    names = {value: name for name, value in RECOMPUTE.items()}

    def one(value: Array | float) -> int:
        return int(np.ravel(value)[0])

    sharded = one(w.zero_stage) > 0
    shard = max(1, one(w.shard) // one(w.context)) if sharded else 1
    return LayoutChoice(
        data_parallel=one(w.data) // shard,
        shard_parallel=shard,
        zero_stage=one(w.zero_stage) or 3,
        tensor_parallel=one(w.tensor),
        sequence_parallel=one(w.tensor) > 1,
        pipeline_parallel=one(w.pipeline),
        virtual_pipeline=one(w.virtual),
        context_parallel=one(w.context),
        expert_parallel=one(w.expert),
        micro_batch_sequences=one(w.micro_batch),
        num_micro_batches=one(w.num_micro_batches),
        activation_checkpointing=names[float(np.ravel(w.recompute)[0])],
        precision=precision,
        step_seconds=seconds,
        memory_bytes=float(use.total[0]),
        step_breakdown_seconds={
            f.name: scale * float(getattr(time, f.name)[0]) for f in fields(time)
        },
        memory_breakdown_bytes={f.name: float(getattr(use, f.name)[0]) for f in fields(use)},
        workload=w,
    )


def _nothing_fits(
    problem: LayoutProblem, peak: Array, num_best: int, calibration: Calibration | None
) -> InfeasibleError:
    """Return the error that says what the smallest feasible change is: more nodes, up to 64 times."""
    cluster = problem.cluster
    least = (
        f"the leanest layout needs {format_bytes(float(peak.min()))} per device"
        if len(peak)
        else "no layout obeys the rules"
    )
    hint = "Not even 64 times the nodes suffice: train a smaller model, or a shorter sequence."
    for factor in (2, 4, 8, 16, 32, 64):
        larger = replace(
            problem,
            cluster=replace(cluster, num_nodes=cluster.num_nodes * factor),
            sequences_per_step=problem.sequences_per_step * factor,
        )
        if _fits_somewhere(larger, calibration):
            hint = f"The smallest change that fits: {larger.cluster} ({factor} times the nodes)."
            break
    return InfeasibleError(
        f"the model must fit the cluster: {least}, {cluster.device.name} offers "
        f"{format_bytes(cluster.usable_memory_bytes)} of {format_bytes(cluster.device.memory_bytes)}.",
        hint=hint,
    )


def _fits_somewhere(problem: LayoutProblem, calibration: Calibration | None) -> bool:
    everything, which = enumerate_layouts(problem)
    allowed = np.flatnonzero(broken_rules(problem, everything, len(which)) < 0)
    memory = calibration.memory if calibration else default_memory(problem.cluster)
    use = memory_use(take(everything, allowed), memory)
    return bool((use.total <= problem.cluster.usable_memory_bytes).any())


def precisions_of(cluster: Cluster, wanted: Sequence[str] = ("bf16", "fp16", "fp32")) -> str:
    """Return the first of the wanted precisions that the device has."""
    return next(p for p in (*wanted, *cluster.device.peaks) if p in cluster.device.peaks)
