"""CostEstimate: memory, time, money and energy of one configuration on one cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypedDict

import numpy as np

from planner.costs.cluster import Cluster
from planner.costs.energy import kwh_of, watts_per_device
from planner.costs.flops import (
    MFU_CONVENTION,
    forward_flops_per_token,
    num_train_tokens,
    train_flops_per_token,
)
from planner.costs.memory import GPU_MEMORY, default_memory, memory_use
from planner.costs.params import count_params
from planner.costs.speed import StepTime, default_efficiency, default_interval, step_time
from planner.costs.workload import Workload, workload_of
from planner.trial import TrialConfig
from planner.units import SECONDS_PER_HOUR, format_bytes

if TYPE_CHECKING:
    from planner.costs.calibration import Calibration
    from planner.costs.tracing import TracedMemory

__all__ = ["CostEstimate", "confidence", "device_peaks", "estimate", "spending", "startup_seconds"]

_TIME_PARTS: Final = (
    "matmul", "attention", "elementwise", "launch", "tensor", "context", "expert", "gather",
    "pipeline", "data", "optimizer", "other",
)  # fmt: skip
_MEMORY_PARTS: Final = (
    "params", "gradients", "optimizer", "activations", "logits", "gathered", "overhead",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class CostEstimate:
    """What a configuration costs. Absent is None: no price, no power, no intervals."""

    num_params: int
    num_params_non_embedding: int
    num_params_active: int
    train_tokens: int
    num_steps: int
    train_flops: float
    """Of the whole training, without recomputation."""
    forward_flops_per_token: float
    train_flops_per_token: float
    peak_memory_bytes: float
    """Per device, on the fullest stage."""
    memory_breakdown_bytes: dict[str, float] = field(default_factory=dict)
    """By kind; sums to the peak."""
    memory_capacity_bytes: float
    """What a plan may fill of one device."""
    fits: bool
    reason: str | None = None
    """Why it cannot run, where it cannot."""
    step_seconds: float
    step_seconds_lower: float | None = None
    """Lower end of the 90 % interval."""
    step_seconds_upper: float | None = None
    step_breakdown_seconds: dict[str, float] = field(default_factory=dict)
    """By what the time is spent on; sums to the step."""
    startup_seconds: float
    """Imports, process groups, data and compilation."""
    train_seconds: float
    """All steps over the goodput, without the start."""
    num_devices: int
    device_hours: float
    """(startup + training) x devices."""
    usd: float | None = None
    price_date: str | None = None
    kwh: float | None = None
    gco2: float | None = None
    mfu: float
    """Model FLOPs over the devices' peak, per `mfu_convention`."""
    mfu_convention: str = MFU_CONVENTION
    confidence: str = "medium"
    """`high` (calibrated on this cluster), `medium`, or `low`, with the reason."""
    confidence_reason: str = ""


def startup_seconds(is_cpu: bool, num_devices: int, compiles: bool) -> float:
    """Return the seconds before the first step: imports, process groups, data, compilation.

    3 s on a CPU; 30 s and 15 s per doubling beyond a node on accelerators (recalled); a compiled
    model takes 40 s more, 20 s on a CPU.
    """
    if is_cpu:
        return (3.0 if num_devices == 1 else 3.5) + 20.0 * compiles
    doublings = max(0, (num_devices - 1).bit_length() - 3)
    return 30.0 + 15.0 * doublings + 40.0 * compiles


def _infeasible(
    config: TrialConfig, cluster: Cluster, peak: float, use: dict[str, float]
) -> str | None:
    """Return why the configuration cannot run on the cluster, or None."""
    workers = config.layout.num_workers
    if workers > cluster.num_devices:
        return (
            f"the layout needs {workers} devices, the cluster has {cluster.num_devices} "
            f"({cluster}). Lower the degrees of parallelism"
        )
    threads = config.execution.threads_per_worker
    if cluster.device.is_cpu and workers * threads > cluster.num_devices:
        return (
            f"the threads need {workers * threads} cores ({workers} x threads_per_worker={threads}), "
            f"the cluster has {cluster.num_devices}. Lower execution.threads_per_worker"
        )
    if peak <= cluster.usable_memory_bytes:
        return None
    biggest = sorted(use, key=lambda kind: -use[kind])[:3]
    parts = ", ".join(f"{kind} {format_bytes(use[kind])}" for kind in biggest)
    return (
        f"does not fit: needs {format_bytes(peak)} per device, {cluster.device.name} has "
        f"{format_bytes(cluster.device.memory_bytes)} less a margin of "
        f"{cluster.memory_margin_fraction:.0%} ({parts}). {_memory_advice(config, biggest[0])}"
    )


def _memory_advice(config: TrialConfig, biggest: str) -> str:
    if biggest in ("activations", "logits"):
        if config.micro_batch_sequences > 1:
            return f"Halve micro_batch_sequences ({config.micro_batch_sequences})"
        if biggest == "logits":
            return "Set execution.chunked_loss: true"
        return "Set execution.activation_checkpointing: full, or raise context_parallel"
    return "Raise shard_parallel (ZeRO), tensor_parallel or pipeline_parallel"


def confidence(
    w: Workload, cluster: Cluster, calibration: Calibration | None, *more: str
) -> tuple[str, str]:
    """Return how far the estimate of one configuration is to be trusted, and why.

    Args:
        w: The configuration.
        cluster: Where it is to run.
        calibration: On that cluster.
        more: Further weaknesses.
    """
    device = cluster.device
    num_trials = calibration.num_trials if calibration else 0
    marks = {
        "the speed of a CPU core is a default": device.is_cpu and not num_trials,
        "TPU speed is not validated": device.is_tpu,
        f"the catalogue's row of {device.name} is recalled": (
            device.confidence == "recalled" and not device.is_cpu
        ),
        "routing of experts is modelled as balanced": np.any(np.asarray(w.num_experts) > 0),
        "context parallelism is modelled without overlap": np.any(np.asarray(w.context) > 1),
        "the gain of fp8 varies by kernel": np.any(np.asarray(w.is_fp8) > 0),
    }
    weak = [*(calibration.warnings(w) if calibration else ()), *more]
    weak += [text for text, holds in marks.items() if holds]
    if weak:
        return "low", "; ".join(weak)
    if num_trials:
        return "high", f"calibrated on {num_trials} trials of this cluster"
    return "medium", "closed forms with default efficiencies, no measurement on this cluster"


def busy_fraction(time: StepTime) -> float:
    """Return the share of the step in which the device computes or moves its memory."""
    busy = time.matmul + time.attention + time.elementwise + time.optimizer
    return float(busy / time.total)


def estimate(
    config: TrialConfig,
    cluster: Cluster,
    *,
    calibration: Calibration | None = None,
    traced: TracedMemory | None = None,
) -> CostEstimate:
    """Return what a configuration costs on a cluster.

    Args:
        config: The trial.
        cluster: A resolved cluster; money needs its price, energy its devices' power.
        calibration: Constants fitted on measured trials of this cluster, with their intervals.
        traced: Memory of the engine's own model (`tracing.trace_memory`), instead of the closed form.

    Raises:
        ConfigError: The device lacks the precision.
    """
    cluster.device.peak_flops_per_second(config.precision.compute)
    w = workload_of(config, device_peaks(config, cluster), on_cpu=cluster.device.is_cpu)
    use = memory_use(w, calibration.memory if calibration else default_memory(cluster))
    breakdown = {kind: float(getattr(use, kind)) for kind in _MEMORY_PARTS}
    if traced is not None:
        breakdown = _traced_breakdown(traced, cluster)
    peak = sum(breakdown.values())
    reason = _infeasible(config, cluster, peak, breakdown)
    time = step_time(
        w, cluster, calibration.efficiency if calibration else default_efficiency(cluster)
    )
    return _assemble(config, cluster, calibration, w, breakdown, reason, time)


def _traced_breakdown(traced: TracedMemory, cluster: Cluster) -> dict[str, float]:
    """Return traced memory by kind; the process or the device's runtime is the overhead."""
    if cluster.device.is_cpu:
        overhead = traced.resident_bytes - traced.tensor_bytes
    else:
        overhead = GPU_MEMORY.overhead_bytes
    return {**traced.kind_bytes, "overhead": overhead}


def device_peaks(config: TrialConfig, cluster: Cluster) -> dict[str, float]:
    """Return the device's peaks; a CPU worker has those of its threads."""
    if not cluster.device.is_cpu:
        return cluster.device.peaks
    threads = config.execution.threads_per_worker
    return {p: peak * (1.0 + 0.75 * (threads - 1)) for p, peak in cluster.device.peaks.items()}


class Spending(TypedDict):
    """The fields of an estimate that follow from its steps: time, money, energy."""

    startup_seconds: float
    train_seconds: float
    num_devices: int
    device_hours: float
    usd: float | None
    kwh: float | None
    gco2: float | None


def _step_interval(
    w: Workload, cluster: Cluster, calibration: Calibration | None, seconds: float
) -> tuple[float, float, float]:
    """Return step seconds with the ends of their 90 % interval."""
    if calibration is None:
        lower, upper = default_interval(w, seconds)
        return seconds, float(lower), float(upper)
    found = calibration.predict(w, cluster)
    return float(found.value[0]), float(found.lower[0]), float(found.upper[0])


def spending(
    cluster: Cluster, num_devices: int, start: float, num_steps: int, step: float, busy: float
) -> Spending:
    """Return what a training spends.

    Args:
        cluster: Its prices, power and goodput.
        num_devices: Devices that are charged.
        start: Seconds before the first step.
        num_steps: Steps of the training.
        step: Seconds of one.
        busy: Share of a step in which a device computes.
    """
    train = num_steps * step / cluster.goodput
    device_hours = (start + train) * num_devices / SECONDS_PER_HOUR
    kwh = None
    if cluster.device.power_watts is not None:
        watts = watts_per_device(cluster.device.power_watts, busy)
        kwh = kwh_of(watts, num_devices, start + train, cluster.pue)
    price = cluster.usd_per_device_hour
    return {
        "startup_seconds": start,
        "train_seconds": train,
        "num_devices": num_devices,
        "device_hours": device_hours,
        "usd": None if price is None else device_hours * price,
        "kwh": kwh,
        "gco2": None if kwh is None else kwh * cluster.grid_gco2_per_kwh,
    }


def _assemble(
    config: TrialConfig,
    cluster: Cluster,
    calibration: Calibration | None,
    w: Workload,
    memory_bytes: dict[str, float],
    reason: str | None,
    time: StepTime,
) -> CostEstimate:
    count, tokens = count_params(config.model), num_train_tokens(config)
    num_steps = tokens // config.tokens_per_step
    per_token = train_flops_per_token(config.model)
    modelled = float(time.total)
    step, lower, upper = _step_interval(w, cluster, calibration, modelled)
    workers, execution = config.layout.num_workers, config.execution
    devices = workers * (execution.threads_per_worker if cluster.device.is_cpu else 1)
    start = startup_seconds(cluster.device.is_cpu, workers, execution.compile)
    peak_rate = cluster.device.peak_flops_per_second(config.precision.compute)
    level, why = confidence(w, cluster, calibration)
    return CostEstimate(
        num_params=count.total,
        num_params_non_embedding=count.non_embedding,
        num_params_active=count.active,
        train_tokens=tokens,
        num_steps=num_steps,
        train_flops=tokens * per_token,
        forward_flops_per_token=forward_flops_per_token(config.model),
        train_flops_per_token=per_token,
        peak_memory_bytes=sum(memory_bytes.values()),
        memory_breakdown_bytes=memory_bytes,
        memory_capacity_bytes=cluster.usable_memory_bytes,
        fits=reason is None,
        reason=reason,
        step_seconds=step,
        step_seconds_lower=lower,
        step_seconds_upper=upper,
        step_breakdown_seconds={
            part: float(getattr(time, part)) * step / modelled for part in _TIME_PARTS
        },
        price_date=cluster.price_date,
        mfu=config.tokens_per_step * per_token / (step * peak_rate * devices),
        confidence=level,
        confidence_reason=why,
        **spending(cluster, devices, start, num_steps, step, busy_fraction(time)),
    )
