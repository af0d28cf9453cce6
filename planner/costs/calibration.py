"""Constants of a cluster, fitted on trials that were measured there.

The few efficiencies of the closed form, bounded and with priors around the defaults, and a Gaussian
process on what they leave, fitted together (`residual.py`). The process is zero where there is little to
learn from; its variance and that of the constants give the intervals. The launch constant is a
property of one cluster's hosts: nothing here carries it to another cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import numpy as np

from planner.costs.cluster import Cluster
from planner.costs.memory import GPU_MEMORY, MemoryConstants, default_memory, memory_use
from planner.costs.residual import Prior, Process, features, fit_process, slopes_of
from planner.costs.speed import (
    NORMAL_90,
    Efficiency,
    default_efficiency,
    default_log_sigma,
    step_time,
)
from planner.costs.workload import Array, Workload, concatenate

__all__ = ["Calibration", "MeasuredTrial", "Prediction", "calibrate", "uncalibrated"]

C = TypeVar("C", Efficiency, MemoryConstants)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MeasuredTrial:
    """One configuration as it ran on a cluster; what was not measured is None."""

    workload: Workload
    cluster: Cluster
    step_seconds: float | None = None
    memory_bytes: float | None = None
    memory_prior: MemoryConstants | None = None
    """Constants for the way in which memory was read, where that is not the whole device's use."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """A quantity with the ends of its 90 % interval."""

    value: Array
    lower: Array
    upper: Array


_SPREADS: Final = {
    "gemm": (0.2, 1.2), "grouped": (0.35, 1.2), "attention": (0.35, 1.0), "memory": (0.5, 1.1), "network": (0.5, 1.2),
    "launch_seconds": (0.6, 0.02),
}  # fmt: skip
"""Log standard deviation around the default, and upper bound, of each efficiency."""
_CPU_SPREADS: Final = {
    "gemm": (0.7, 4.0), "grouped": (0.35, 1.2), "attention": (0.7, 2.0), "memory": (0.7, 4.0), "network": (0.8, 4.0),
    "launch_seconds": (0.8, 0.02),
}  # fmt: skip
"""The same for cores, whose default speed is a guess."""
_MEMORY_SPREADS: Final = {
    "overhead_bytes": (0.5, 1e12), "activation_factor": (0.2, 10.0), "loss_factor": (0.3, 10.0),
    "state_factor": (0.1, 10.0),
}  # fmt: skip
_LEAST: Final = -4.0
"""Lower bound of the logarithm of a constant over its default."""

_MOST_TRIALS: Final = 400

_TIME_PRIOR: Final = Prior()
"""Of step seconds; chosen so that no source of benchmarks/costs.py is much worse off than another."""
_MEMORY_PRIOR: Final = Prior(
    effect=0.02, experts=0.02, amplitude=0.04, kernels=0.0, noise=0.1, expert_noise=1.0
)
_MEMORY_LOG_SIGMA: Final = 0.2
"""Log standard deviation of measured over predicted peak memory without calibration; with it about nine
tenths of the rows that benchmarks/costs.py reads are covered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Constants of one cluster, the residual that they leave, and on what they were fitted."""

    efficiency: Efficiency
    memory: MemoryConstants = GPU_MEMORY
    num_trials: int = 0
    num_memory_trials: int = 0
    residual: Process | None = None
    memory_residual: Process | None = None
    spans: tuple[tuple[str, float, float], ...] = ()
    """Quantity, least and greatest value among the trials."""
    notes: tuple[str, ...] = field(default=())

    def predict(self, w: Workload, cluster: Cluster) -> Prediction:
        """Return step seconds with a 90 % interval."""

        def at(efficiency: Efficiency) -> Array:
            return np.log(np.atleast_1d(step_time(w, cluster, efficiency).total))

        return _prediction(
            at, self.efficiency, _spreads(cluster), self.residual, w, default_log_sigma(w)
        )

    def predict_memory(self, w: Workload) -> Prediction:
        """Return peak bytes per device with a 90 % interval."""

        def at(constants: MemoryConstants) -> Array:
            return np.log(np.atleast_1d(memory_use(w, constants).total))

        sigma = np.asarray(_MEMORY_LOG_SIGMA)
        return _prediction(at, self.memory, _MEMORY_SPREADS, self.memory_residual, w, sigma)

    def warnings(self, w: Workload) -> tuple[str, ...]:
        """Return what a prediction needs that the trials do not span."""
        outside = []
        for name, low, high in self.spans:
            value = np.asarray(_SPANS[name](w))
            if np.any(value < low) or np.any(value > high):
                outside.append(f"the calibration's trials have {name} {low:g} to {high:g}")
        return tuple(outside)


_SPANS: Final[dict[str, Callable[[Workload], Array | float]]] = {
    "recompute modes": lambda w: w.recompute,
    "numbers of devices": lambda w: w.num_devices,
    "8-bit products": lambda w: w.is_fp8,
    "sequence lengths": lambda w: w.sequence_tokens,
    "widths": lambda w: w.d_model,
}


def _spreads(cluster: Cluster) -> Mapping[str, tuple[float, float]]:
    return _CPU_SPREADS if cluster.device.is_cpu else _SPREADS


def _moved(constants: C, names: Sequence[str], u: Array) -> C:
    """Return the constants times exp(u)."""
    values = {
        name: getattr(constants, name) * float(np.exp(x)) for name, x in zip(names, u, strict=True)
    }
    return replace(constants, **values)


def _prediction(
    at: Callable[[C], Array],
    constants: C,
    spreads: Mapping[str, tuple[float, float]],
    process: Process | None,
    w: Workload,
    prior: Array,
) -> Prediction:
    """Return the closed form's value, moved by the process, with the interval of both."""
    value = at(constants)
    if process is None:
        mean, sigma = np.zeros_like(value), np.broadcast_to(prior, value.shape)
    else:
        names = tuple(spreads)
        slopes = slopes_of(lambda u: at(_moved(constants, names, u)), np.zeros(len(names)))
        mean, sigma = process.at(features(w), slopes)
    middle, reach = np.exp(value + mean), np.exp(NORMAL_90 * sigma)
    return Prediction(value=middle, lower=middle / reach, upper=middle * reach)


def uncalibrated(cluster: Cluster) -> Calibration:
    """Return the defaults of a cluster with the intervals that they had on other clusters."""
    return Calibration(efficiency=default_efficiency(cluster), memory=default_memory(cluster))


def _batches(trials: Sequence[MeasuredTrial]) -> list[tuple[list[int], Workload, Cluster]]:
    """Return the trials by cluster as arrays, with their places."""
    places: dict[tuple[object, ...], list[int]] = {}
    for i, trial in enumerate(trials):
        c = trial.cluster
        key = (
            c.device.name,
            c.devices_per_node,
            c.devices_per_domain,
            c.device.achievable_fraction,
        )
        places.setdefault(key, []).append(i)
    return [
        (ix, concatenate([trials[i].workload for i in ix]), trials[ix[0]].cluster)
        for ix in places.values()
    ]


def _predicted(
    batches: list[tuple[list[int], Workload, Cluster]], e: Efficiency, size: int
) -> Array:
    seconds = np.empty(size)
    for places, w, cluster in batches:
        seconds[places] = step_time(w, cluster, e).total
    return seconds


def _fit(
    start: C,
    spreads: Mapping[str, tuple[float, float]],
    at: Callable[[C], Array],
    trials: Sequence[MeasuredTrial],
    measured: Sequence[float | None],
    prior: Prior,
) -> tuple[C, Process]:
    """Return the constants of highest posterior, and the process on what they leave."""
    names = tuple(spreads)
    top = [np.log(max(most / getattr(start, n), 1.01)) for n, (_, most) in spreads.items()]
    u, process = fit_process(
        lambda u: at(_moved(start, names, u)),
        np.log([value or 1.0 for value in measured]),
        features(concatenate([trial.workload for trial in trials])),
        np.array([spread for spread, _ in spreads.values()]),
        (np.full(len(names), _LEAST), np.array(top)),
        prior,
    )
    return _moved(start, names, u), process


def _fit_efficiency(trials: Sequence[MeasuredTrial]) -> tuple[Efficiency, Process]:
    cluster, batches = trials[0].cluster, _batches(trials)
    return _fit(
        default_efficiency(cluster),
        _spreads(cluster),
        lambda e: np.log(_predicted(batches, e, len(trials))),
        trials,
        [trial.step_seconds for trial in trials],
        _TIME_PRIOR,
    )


def _fit_memory(trials: Sequence[MeasuredTrial]) -> tuple[MemoryConstants, Process]:
    w = concatenate([trial.workload for trial in trials])
    return _fit(
        trials[0].memory_prior or default_memory(trials[0].cluster),
        _MEMORY_SPREADS,
        lambda constants: np.log(memory_use(w, constants).total),
        trials,
        [trial.memory_bytes for trial in trials],
        _MEMORY_PRIOR,
    )


_FOLDS: Final = 5
_LEARNT_BELOW: Final = 0.9
"""A fit must lower the median error to this share, because it is an estimate itself; set by hand."""


def _memory_is_learnt(trials: Sequence[MeasuredTrial]) -> bool:
    """Return whether a fit to some of the trials predicts the others better than the defaults do.

    Decided by the median error over the folds of a cross-validation; equal configurations are in one
    fold. It is not learnt where what decides memory is not in the configuration, such as whether the
    loss is fused. A single configuration is taken at its word.
    """
    w = concatenate([trial.workload for trial in trials])
    group = np.unique(features(w), axis=0, return_inverse=True)[1].ravel()
    if group.max() < 1:
        return True
    cluster = trials[0].cluster
    default = replace(
        uncalibrated(cluster), memory=trials[0].memory_prior or default_memory(cluster)
    )
    fitted: list[float] = []
    plain: list[float] = []
    for fold in range(min(_FOLDS, int(group.max()) + 1)):
        kept = [trial for trial, g in zip(trials, group, strict=True) if g % _FOLDS != fold]
        left = [trial for trial, g in zip(trials, group, strict=True) if g % _FOLDS == fold]
        memory, residual = _fit_memory(kept)
        there = concatenate([trial.workload for trial in left])
        truth = np.array([trial.memory_bytes or 1.0 for trial in left])
        for found, errors in (
            (replace(default, memory=memory, memory_residual=residual), fitted),
            (default, plain),
        ):
            errors += np.abs(np.log(found.predict_memory(there).value / truth)).tolist()
    return float(np.median(fitted)) <= _LEARNT_BELOW * float(np.median(plain))


def _thinned(trials: list[MeasuredTrial]) -> list[MeasuredTrial]:
    """Return at most so many trials, evenly: the fit grows with the cube of their number."""
    if len(trials) <= _MOST_TRIALS:
        return trials
    return [trials[i] for i in np.linspace(0, len(trials) - 1, _MOST_TRIALS).astype(int)]


def calibrate(trials: Sequence[MeasuredTrial]) -> Calibration:
    """Return the calibration that measured trials of one cluster support; none gives the defaults.

    Raises:
        ValueError: There is no trial at all, so that not even the device is known.
    """
    if not trials:
        raise ValueError("calibration needs at least one measured trial")
    result = uncalibrated(trials[0].cluster)
    timed = _thinned([trial for trial in trials if trial.step_seconds])
    weighed = _thinned([trial for trial in trials if trial.memory_bytes])
    if timed:
        efficiency, residual = _fit_efficiency(timed)
        result = replace(
            result,
            efficiency=efficiency,
            residual=residual,
            num_trials=len(timed),
            spans=_spans(timed),
        )
    if weighed and _memory_is_learnt(weighed):
        memory, memory_residual = _fit_memory(weighed)
        result = replace(
            result,
            memory=memory,
            memory_residual=memory_residual,
            num_memory_trials=len(weighed),
        )
    elif weighed and weighed[0].memory_prior is not None:
        result = replace(result, memory=weighed[0].memory_prior)
    return result


def _spans(trials: Sequence[MeasuredTrial]) -> tuple[tuple[str, float, float], ...]:
    w = concatenate([trial.workload for trial in trials])
    return tuple(
        (name, float(np.min(value)), float(np.max(value)))
        for name, of in _SPANS.items()
        for value in [np.asarray(of(w))]
    )
