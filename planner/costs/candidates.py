"""Every way to lay a model over a cluster: what is asked, all candidates, and the rules they must obey.

A candidate is a set of degrees with micro-batch, recomputation and precision. All candidates are
arrays of one Workload, so that a million of them take about a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from planner.costs.cluster import Cluster
from planner.costs.shapes import ModelShape
from planner.costs.workload import (
    RECOMPUTE,
    Array,
    Workload,
    model_fields,
    precision_fields,
)
from planner.trial import divisors

__all__ = ["RULES", "LayoutProblem", "broken_rules", "enumerate_layouts", "take"]

_MAX_MICRO_BATCH: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutProblem:
    """What is to be laid out, and what may be varied."""

    shape: ModelShape
    cluster: Cluster
    sequences_per_step: int
    precisions: tuple[str, ...] = ("bf16",)
    recompute: tuple[str, ...] = ("none", "selective", "full")
    optimizer: str = "adamw"
    flash: bool = True
    compiled: bool = False


class _Rule(Protocol):
    def __call__(self, w: Workload, problem: LayoutProblem) -> npt.NDArray[np.bool_]: ...


def _divides(divisor: Array | float, number: float) -> npt.NDArray[np.bool_]:
    return np.asarray(np.mod(number, divisor) == 0)


RULES: Final[Mapping[str, _Rule]] = {
    "tensor_parallel stays inside the scale-up domain": lambda w, p: np.asarray(
        w.tensor <= p.cluster.devices_per_domain
    ),
    "tensor_parallel divides num_heads": lambda w, p: _divides(w.tensor, p.shape.num_heads),
    "tensor_parallel divides num_kv_heads": lambda w, p: _divides(w.tensor, p.shape.num_kv_heads),
    "tensor_parallel divides d_ff": lambda w, p: _divides(w.tensor, p.shape.d_ff),
    "tensor_parallel divides sequence_length (sequence parallelism)": lambda w, p: _divides(
        w.tensor, p.shape.sequence_length
    ),
    "pipeline stages do not outnumber layers": lambda w, p: np.asarray(
        w.pipeline * w.virtual <= p.shape.num_blocks
    ),
    "interleaved stages divide num_layers": lambda w, p: np.asarray(
        (np.asarray(w.virtual) == 1) | (np.mod(p.shape.num_blocks, w.pipeline * w.virtual) == 0)
    ),
    "pipeline_parallel divides the micro-batches (interleaved)": lambda w, p: np.asarray(
        (np.asarray(w.virtual) == 1) | (np.mod(w.num_micro_batches, w.pipeline) == 0)
    ),
    "2 context_parallel divides sequence_length": lambda w, p: np.asarray(
        (np.asarray(w.context) == 1) | _divides(2.0 * w.context, p.shape.sequence_length)
    ),
    "expert_parallel divides num_experts": lambda w, p: np.asarray(
        (np.asarray(w.expert) == 1) | _divides(w.expert, max(1, p.shape.num_experts))
    ),
    "expert_parallel divides the data-parallel workers": lambda w, p: np.asarray(
        np.mod(w.data * w.context, w.expert) == 0
    ),
}
"""What must hold of a layout before its memory is looked at, in the order of the check."""


def _divisors_up_to(number: int, most: int) -> list[int]:
    return [d for d in divisors(number) if d <= most]


def _degrees(problem: LayoutProblem) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yield (data, tensor, pipeline, context, expert, micro-batch) that use every device."""
    shape, devices = problem.shape, problem.cluster.num_devices
    splits = shape.family != "convnet"
    tensors = _divisors_up_to(devices, min(64, shape.num_heads)) if splits else [1]
    experts = divisors(shape.num_experts) if shape.num_experts else [1]
    for tensor in tensors:
        for pipeline in _divisors_up_to(devices // tensor, shape.num_blocks) if splits else [1]:
            rest = devices // (tensor * pipeline)
            most_context = max(1, shape.sequence_length // 2048) if splits else 1
            for context in _divisors_up_to(rest, most_context):
                data = rest // context
                if problem.sequences_per_step % data:
                    continue
                share = problem.sequences_per_step // data
                for micro in _divisors_up_to(share, _MAX_MICRO_BATCH):
                    for expert in experts:
                        if expert <= data * context:
                            yield data, tensor, pipeline, context, expert, micro


def _sharding(data: Array, context: Array, per_domain: int) -> list[tuple[int, Array]]:
    """Return the ways to shard states: not at all, ZeRO-1 to 3 over all, ZeRO-3 inside a domain."""
    everyone = data * context
    inside = np.where(np.mod(data, per_domain) == 0, float(per_domain), data)
    return [(0, np.ones_like(data)), *((stage, everyone) for stage in (1, 2, 3)), (3, inside)]


def enumerate_layouts(problem: LayoutProblem) -> tuple[Workload, npt.NDArray[np.int64]]:
    """Return all candidates as one workload, and for each the index of its precision.

    Degrees multiply to the cluster's devices; micro-batches divide a worker's share; virtual stages
    are 1, 2, 4, ... chunks of layers.
    """
    degrees = np.array(sorted(set(_degrees(problem))), dtype=np.float64).reshape(-1, 6)
    blocks = []
    for virtual in (1, 2, 4, 8):
        rows = degrees if virtual == 1 else degrees[degrees[:, 2] > 1]
        shardings = _sharding(rows[:, 0], rows[:, 3], problem.cluster.devices_per_domain)
        for i, (stage, shard) in enumerate(shardings):
            useful = shard > 1 if stage else np.full(len(rows), True)
            if i == len(shardings) - 1:
                useful = (shard > 1) & (shard < rows[:, 0] * rows[:, 3])
            for mode in problem.recompute:
                for p in range(len(problem.precisions)):
                    extra = [
                        shard,
                        *(np.full(len(rows), x) for x in (stage, virtual, RECOMPUTE[mode], p)),
                    ]
                    blocks.append(np.column_stack([rows, *extra])[useful])
    table = np.concatenate(blocks) if blocks else np.empty((0, 11))
    return _as_workload(problem, table), table[:, 10].astype(np.int64)


def _as_workload(problem: LayoutProblem, table: Array) -> Workload:
    data, tensor, pipeline, context, expert, micro, shard, stage, virtual, recompute, _ = table.T
    by_precision = [
        precision_fields(name, problem.optimizer, problem.cluster.device.peaks)
        for name in problem.precisions
    ]
    which = table[:, 10].astype(np.int64)
    chosen = {name: np.array([p[name] for p in by_precision])[which] for name in by_precision[0]}
    return Workload(
        **model_fields(problem.shape),
        **chosen,
        data=data, shard=shard, zero_stage=stage, tensor=tensor,
        sequence_parallel=(tensor > 1).astype(np.float64), pipeline=pipeline, virtual=virtual,
        context=context, expert=expert, micro_batch=micro,
        num_micro_batches=problem.sequences_per_step / (data * micro), recompute=recompute, early_stop=1.0,
        flash=float(problem.flash), compiled=float(problem.compiled),
    )  # fmt: skip


def take(w: Workload, index: npt.NDArray[np.int64] | slice) -> Workload:
    """Return some of the configurations of a workload of arrays."""
    changes = {
        f.name: value[index]
        for f in fields(w)
        if isinstance(value := getattr(w, f.name), np.ndarray) and value.ndim
    }
    return replace(w, **changes)


def broken_rules(problem: LayoutProblem, w: Workload, size: int) -> npt.NDArray[np.int64]:
    """Return for each candidate the index of the first rule that it breaks, or -1."""
    broken = np.full(size, -1)
    for i, rule in reversed(list(enumerate(RULES.values()))):
        broken[~np.broadcast_to(rule(w, problem), size)] = i
    return broken
