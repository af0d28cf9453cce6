"""A quote: the best layouts of a model on a cluster with time, money and energy of a whole training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from planner.costs.cluster import Cluster
from planner.costs.energy import kwh_of, watts_per_device
from planner.costs.estimates import startup_seconds
from planner.costs.flops import MFU_CONVENTION, shape_flops_per_token
from planner.costs.layouts import LayoutChoice, LayoutProblem, LayoutSearch, search_layouts
from planner.costs.params import ParamCount, count_shape_params
from planner.costs.shapes import ModelShape
from planner.costs.speed import NORMAL_90, default_log_sigma
from planner.errors import ConfigError
from planner.units import SECONDS_PER_HOUR

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


def _confidence(
    shape: ModelShape, cluster: Cluster, best: LayoutChoice, calibration: Calibration | None
) -> tuple[str, str]:
    weak = list(calibration.warnings(best.workload)) if calibration else []
    marks = {
        "routing of experts is modelled as balanced": shape.num_experts > 0,
        "context parallelism is modelled without overlap": best.context_parallel > 1,
        "the gain of fp8 varies by kernel": best.precision == "fp8",
        "TPU speed is not validated": cluster.device.is_tpu,
        "the speed of a CPU core is a default": cluster.device.is_cpu and calibration is None,
        f"the catalogue's row of {cluster.device.name} is recalled": (
            cluster.device.confidence == "recalled" and not cluster.device.is_cpu
        ),
        "sharding over more than 512 devices was slower than modelled in old frameworks": (
            best.zero_stage == 3 and best.shard_parallel > 512
        ),
    }
    weak += [text for text, holds in marks.items() if holds]
    if weak:
        return "low", "; ".join(weak)
    if calibration is not None and calibration.num_trials:
        return "high", f"calibrated on {calibration.num_trials} trials of this cluster"
    return "medium", "closed forms with default efficiencies, no measurement on this cluster"


def _quoted(
    layout: LayoutChoice,
    best: LayoutChoice,
    problem: LayoutProblem,
    num_steps: int,
    calibration: Calibration | None,
) -> QuotedLayout:
    cluster, w = problem.cluster, layout.workload
    step = layout.step_seconds
    reach = math.exp(NORMAL_90 * float(default_log_sigma(w).ravel()[0]))
    lower, upper = step / reach, step * reach
    if calibration is not None:
        found = calibration.predict(w, cluster)
        step, lower, upper = float(found.value[0]), float(found.lower[0]), float(found.upper[0])
    train = num_steps * step / cluster.goodput
    start = startup_seconds(cluster.device.is_cpu, cluster.num_devices, problem.compiled)
    device_hours = (start + train) * cluster.num_devices / SECONDS_PER_HOUR
    kwh = None
    if cluster.device.power_watts is not None:
        names = ("matmul", "attention", "elementwise", "optimizer")
        busy = sum(layout.step_breakdown_seconds[n] for n in names) / layout.step_seconds
        watts = watts_per_device(cluster.device.power_watts, busy)
        kwh = kwh_of(watts, cluster.num_devices, start + train, cluster.pue)
    price = cluster.usd_per_device_hour
    tokens = problem.sequences_per_step * problem.shape.sequence_length
    peak = cluster.device.peak_flops_per_second(layout.precision) * cluster.num_devices
    return QuotedLayout(
        layout=layout,
        step_seconds=step,
        step_seconds_lower=lower,
        step_seconds_upper=upper,
        train_seconds=train,
        device_hours=device_hours,
        usd=None if price is None else device_hours * price,
        kwh=kwh,
        gco2=None if kwh is None else kwh * cluster.grid_gco2_per_kwh,
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
    level, why = _confidence(problem.shape, problem.cluster, best, calibration)
    cluster = problem.cluster
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
