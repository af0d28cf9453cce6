"""A quote: the best layouts of a model on a cluster with time, money and energy of a whole training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from planner.costs.candidates import LayoutProblem
from planner.costs.cluster import Cluster
from planner.costs.estimates import confidence, spending, startup_seconds
from planner.costs.flops import MFU_CONVENTION, shape_flops_per_token
from planner.costs.layouts import LayoutChoice, LayoutSearch, search_layouts
from planner.costs.params import ParamCount, count_shape_params
from planner.costs.shapes import ModelShape
from planner.costs.speed import default_interval
from planner.errors import ConfigError

if TYPE_CHECKING:
    from planner.costs.calibration import Calibration

__all__ = ["Quote", "QuotedLayout", "default_sequences_per_step", "quote"]

_TOKENS_PER_STEP: Final = 2.0**21
"""Tokens per step where none are asked for: what GPT-3 6.7B was trained with (arXiv:2005.14165,
table 2.1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuotedLayout:
    """One layout with the cost of the whole training."""

    layout: LayoutChoice
    step_seconds: float
    step_seconds_lower: float
    step_seconds_upper: float
    train_seconds: float
    device_hours: float
    usd: float | None
    kwh: float | None
    gco2: float | None
    mfu: float
    lost_by: str
    """Against the best layout: what its extra time goes to; empty for the best."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quote:
    """The answer to what a training costs without a study."""

    count: ParamCount
    train_tokens: float
    train_flops: float
    sequences_per_step: int
    num_steps: int
    startup_seconds: float
    layouts: tuple[QuotedLayout, ...]
    search: LayoutSearch
    binds: str
    """What keeps the best layout from being faster."""
    confidence: str
    confidence_reason: str
    mfu_convention: str = MFU_CONVENTION


def default_sequences_per_step(shape: ModelShape, cluster: Cluster) -> int:
    """Return about two million tokens per step in whole sequences, a multiple of the devices.

    On cores of a CPU, eight sequences each.
    """
    if cluster.device.is_cpu:
        return 8 * cluster.num_devices
    wanted = max(1.0, _TOKENS_PER_STEP / shape.sequence_length)
    return max(1, round(wanted / cluster.num_devices)) * cluster.num_devices


def _groups(layout: LayoutChoice) -> dict[str, float]:
    parts = layout.step_breakdown_seconds
    compute = ("matmul", "attention", "elementwise", "launch")
    return {
        "compute": sum(parts[name] for name in compute),
        **{name: seconds for name, seconds in parts.items() if name not in compute},
    }


def _lost_by(layout: LayoutChoice, best: LayoutChoice) -> str:
    """Return what a layout's time over the best one's goes to."""
    extra = layout.step_seconds / best.step_seconds - 1.0
    if layout is best:
        return ""
    mine, its = _groups(layout), _groups(best)
    worst = max(mine, key=lambda name: mine[name] - its[name])
    return f"+{extra:.0%}: {worst}"


def _binds(best: LayoutChoice, cluster: Cluster) -> str:
    filled = best.memory_bytes / cluster.usable_memory_bytes
    shares = _groups(best)
    largest = max(shares, key=lambda name: shares[name])
    most = f"{largest} ({shares[largest] / best.step_seconds:.0%} of the step)"
    return f"{most}; memory {filled:.0%} full" if filled > 0.9 else most


_WIDE_SHARDING: Final = (
    "sharding over more than 512 devices was slower than modelled in old frameworks"
)


def _quoted(
    layout: LayoutChoice,
    best: LayoutChoice,
    problem: LayoutProblem,
    num_steps: int,
    calibration: Calibration | None,
) -> QuotedLayout:
    cluster, w = problem.cluster, layout.workload
    step = layout.step_seconds
    lower, upper = (float(x.ravel()[0]) for x in default_interval(w, step))
    if calibration is not None:
        found = calibration.predict(w, cluster)
        step, lower, upper = float(found.value[0]), float(found.lower[0]), float(found.upper[0])
    start = startup_seconds(cluster.device.is_cpu, cluster.num_devices, problem.compiled)
    names = ("matmul", "attention", "elementwise", "optimizer")
    busy = sum(layout.step_breakdown_seconds[n] for n in names) / layout.step_seconds
    spent = spending(cluster, cluster.num_devices, start, num_steps, step, busy)
    tokens = problem.sequences_per_step * problem.shape.sequence_length
    peak = cluster.device.peak_flops_per_second(layout.precision) * cluster.num_devices
    return QuotedLayout(
        layout=layout,
        step_seconds=step,
        step_seconds_lower=lower,
        step_seconds_upper=upper,
        train_seconds=spent["train_seconds"],
        device_hours=spent["device_hours"],
        usd=spent["usd"],
        kwh=spent["kwh"],
        gco2=spent["gco2"],
        mfu=tokens * shape_flops_per_token(problem.shape) / (step * peak),
        lost_by=_lost_by(layout, best),
    )


def quote(
    problem: LayoutProblem,
    tokens: float,
    *,
    num_best: int = 3,
    calibration: Calibration | None = None,
) -> Quote:
    """Return the best layouts of a model with the cost of training it on so many tokens.

    Raises:
        ConfigError: The number of tokens is not positive, or the device lacks the precision.
        InfeasibleError: No layout fits.
    """
    if not (tokens > 0 and math.isfinite(tokens)):
        raise ConfigError(f"tokens must be positive: got {tokens:g}.")
    if problem.shape.family == "convnet":
        raise ConfigError(
            "layouts are ranked for transformers only; a convolutional network trains data-parallel.",
            hint="planner estimate prints its parameters, FLOPs and time per image.",
        )
    search = search_layouts(problem, num_best=num_best, calibration=calibration)
    best = search.best[0]
    num_steps = max(1, round(tokens / (problem.sequences_per_step * problem.shape.sequence_length)))
    cluster = problem.cluster
    more = (_WIDE_SHARDING,) if best.zero_stage == 3 and best.shard_parallel > 512 else ()
    level, why = confidence(best.workload, cluster, calibration, *more)
    return Quote(
        count=count_shape_params(problem.shape),
        train_tokens=tokens,
        train_flops=tokens * shape_flops_per_token(problem.shape),
        sequences_per_step=problem.sequences_per_step,
        num_steps=num_steps,
        startup_seconds=startup_seconds(
            cluster.device.is_cpu, cluster.num_devices, problem.compiled
        ),
        layouts=tuple(
            _quoted(layout, best, problem, num_steps, calibration) for layout in search.best
        ),
        search=search,
        binds=_binds(best, cluster),
        confidence=level,
        confidence_reason=why,
    )
