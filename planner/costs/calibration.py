"""Constants of a cluster, fitted on trials that were measured there.

Two layers: the few efficiencies of the closed form, bounded and with priors around the defaults;
then a Gaussian process on what the logarithm of measured over predicted leaves, which shrinks to
nothing where there is little to learn from. Its variance gives the intervals. The launch constant is
a property of one cluster's hosts: nothing here carries it to another cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import least_squares
from scipy.stats import t as student

from planner.costs.cluster import Cluster
from planner.costs.memory import CPU_MEMORY, GPU_MEMORY, MemoryConstants, memory_use
from planner.costs.speed import (
    NORMAL_90,
    Efficiency,
    default_efficiency,
    default_log_sigma,
    step_time,
)
from planner.costs.workload import Array, Workload, concatenate

__all__ = ["Calibration", "MeasuredTrial", "Prediction", "calibrate", "uncalibrated"]


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


_PRIORS: Final = {
    "gemm": (0.2, 1.2), "attention": (0.35, 1.0), "memory": (0.35, 1.1), "network": (0.6, 1.2),
    "launch_seconds": (0.8, 0.02),
}  # fmt: skip
"""Log standard deviation around the default, and upper bound, of each efficiency."""

_CPU_PRIORS: Final = {
    "gemm": (0.7, 4.0), "attention": (0.7, 2.0), "memory": (0.7, 4.0), "network": (0.8, 4.0),
    "launch_seconds": (0.8, 0.02),
}  # fmt: skip
"""The same for cores, whose default speed is a guess."""

_NOISE: Final = 0.2
"""Log standard deviation of what the closed form leaves, while its constants are fitted; wide, so that
a few trials do not drag a constant to explain what the residual process should."""
_MEMORY_LOG_SIGMA: Final = 0.15
"""Log standard deviation of measured over predicted peak memory without calibration."""
_MEMORY_NOISE: Final = 0.06
"""Log standard deviation of what the closed form of memory leaves while its constants are fitted."""
_AMPLITUDES: Final = (0.02, 0.05, 0.1, 0.2, 0.35)
"""Standard deviations of the residual process that the marginal likelihood chooses among."""


def _features(w: Workload) -> Array:
    """Return what residuals may depend on, one row per configuration, in units of one length scale."""
    columns = [
        np.log2(w.micro_batch * w.sequence_tokens / w.context) / 3.0,
        np.log2(w.d_model) / 2.0,
        np.log2(w.sequence_tokens) / 3.0,
        np.log2(w.tensor) / 2.0,
        np.log2(w.pipeline) / 2.0,
        np.log2(w.data) / 4.0,
        np.log2(w.context) / 2.0,
        np.log2(w.num_micro_batches) / 4.0,
        np.log2(w.virtual) / 3.0,
        np.asarray(w.recompute) / 2.0,
        np.asarray(w.is_fp8) / 1.0,
        np.asarray(w.zero_stage) / 3.0,
        np.asarray(w.flash) / 1.0,
        np.log2(1.0 + np.asarray(w.num_experts)) / 6.0,
        np.log2(w.head_dim) / 2.0,
    ]
    size = np.broadcast_shapes(*(np.shape(c) for c in columns))
    return np.stack([np.broadcast_to(c, size or (1,)) for c in columns], axis=1).astype(np.float64)


def _kernel(a: Array, b: Array) -> Array:
    """Return the correlation of residuals: half a common effect per feature, half all of them together.

    A product of exponentials in the city-block distance (Matern 1/2), plus the mean over the
    features that vary of such exponentials one by one, so that the effect of one degree carries over.
    """
    distance = np.abs(a[:, None, :] - b[None, :, :])
    together = np.exp(-0.5 * distance.sum(axis=2))
    varies = np.ptp(np.concatenate([a, b]), axis=0) > 0
    if not varies.any():
        return np.asarray(together)
    apart = np.exp(-distance[:, :, varies]).mean(axis=2)
    return np.asarray(0.5 * together + 0.5 * apart)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Residual:
    """A Gaussian process on log residuals."""

    points: Array
    weights: Array
    factor: Array
    amplitude: float
    noise: float

    def at(self, points: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation at points, the noise included."""
        cross = self.amplitude**2 * _kernel(points, self.points)
        mean = cross @ self.weights
        solved = cho_solve((self.factor, True), cross.T)
        variance = self.amplitude**2 - np.einsum("ij,ji->i", cross, solved)
        return mean, np.sqrt(np.maximum(variance, 0.0) + self.noise**2)


def _trust(residuals: Array) -> Array:
    """Return by how much the noise of each residual is to be multiplied: 1, more for outliers.

    Beyond two robust standard deviations from the median, with the square of the distance.
    """
    distance = np.abs(residuals - np.median(residuals))
    spread = max(1.4826 * float(np.median(distance)), 0.03)
    return np.asarray(np.maximum(1.0, (distance / (2.0 * spread)) ** 2))


def fit_residual(points: Array, residuals: Array, *, robust: bool = False) -> Residual:
    """Return the process whose amplitude and noise have the highest marginal likelihood.

    A weak prior keeps both moderate, so that a few lucky rows do not promise precision.
    """
    doubt = _trust(residuals) if robust else np.ones_like(residuals)
    best, best_score = None, -np.inf
    correlation = _kernel(points, points)
    for amplitude in _AMPLITUDES[:2] if robust else _AMPLITUDES:
        for noise in (0.06, 0.1, 0.2) if robust else (0.02, 0.04, 0.08, 0.16):
            matrix = amplitude**2 * correlation + np.diag((noise * doubt) ** 2)
            factor = cho_factor(matrix, lower=True)
            weights = cho_solve(factor, residuals)
            score = -0.5 * residuals @ weights - np.log(np.diag(factor[0])).sum()
            score -= np.log(amplitude / 0.15) ** 2 / 2.0 + np.log(noise / 0.04) ** 2
            if score > best_score:
                best_score = score
                best = Residual(
                    points=points,
                    weights=weights,
                    factor=factor[0],
                    amplitude=amplitude,
                    noise=noise,
                )
    if best is None:
        raise ValueError("measured step seconds and bytes must be positive and finite")
    return best


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Constants of one cluster, the residual that they leave, and on what they were fitted."""

    efficiency: Efficiency
    memory: MemoryConstants = GPU_MEMORY
    num_trials: int = 0
    num_memory_trials: int = 0
    residual: Residual | None = None
    memory_residual: Residual | None = None
    spans: tuple[tuple[str, float, float], ...] = ()
    """Quantity, least and greatest value among the trials."""
    notes: tuple[str, ...] = field(default=())

    def predict(self, w: Workload, cluster: Cluster) -> Prediction:
        """Return step seconds with a 90 % interval."""
        value = np.atleast_1d(step_time(w, cluster, self.efficiency).total)
        return _interval(value, w, self.residual, self.num_trials, default_log_sigma(w))

    def predict_memory(self, w: Workload) -> Prediction:
        """Return peak bytes per device with a 90 % interval."""
        value = np.atleast_1d(memory_use(w, self.memory).total)
        return _interval(
            value, w, self.memory_residual, self.num_memory_trials, np.asarray(_MEMORY_LOG_SIGMA)
        )

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


def _interval(
    value: Array, w: Workload, residual: Residual | None, num_trials: int, prior: Array
) -> Prediction:
    """Return the value, moved by the residual's mean, with Student's interval at 90 %."""
    if residual is None:
        mean, sigma = np.zeros_like(value), np.broadcast_to(prior, value.shape)
        reach = NORMAL_90
    else:
        mean, sigma = residual.at(_features(w))
        few = (1.0 + 3.0 / num_trials) ** 0.5
        reach = few * float(student.ppf(0.95, max(2, num_trials - 1)))
    middle = value * np.exp(mean)
    return Prediction(
        value=middle, lower=middle * np.exp(-reach * sigma), upper=middle * np.exp(reach * sigma)
    )


def uncalibrated(cluster: Cluster) -> Calibration:
    """Return the defaults of a cluster with the intervals that they had on other clusters."""
    memory = CPU_MEMORY if cluster.device.is_cpu else GPU_MEMORY
    return Calibration(efficiency=default_efficiency(cluster), memory=memory)


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


def _fit_efficiency(trials: Sequence[MeasuredTrial]) -> tuple[Efficiency, Array]:
    """Return the efficiencies of highest posterior, and the log residuals that they leave."""
    start = default_efficiency(trials[0].cluster)
    batches = _batches(trials)
    measured = np.log([trial.step_seconds or 1.0 for trial in trials])
    priors = _CPU_PRIORS if trials[0].cluster.device.is_cpu else _PRIORS
    names = list(priors)
    centre = np.log([getattr(start, name) for name in names])
    spread = np.array([priors[name][0] for name in names])
    top = np.log([max(priors[name][1], 1.01 * getattr(start, name)) for name in names])

    def at(x: Array) -> Efficiency:
        return replace(start, **dict(zip(names, np.exp(x).tolist(), strict=True)))

    def loss(x: Array) -> Array:
        errors = (np.log(_predicted(batches, at(x), len(trials))) - measured) / _NOISE
        robust = np.sign(errors) * np.sqrt(2.0 * (np.sqrt(1.0 + errors**2 / 4.0) - 1.0) * 4.0)
        return np.concatenate([robust, (x - centre) / spread])

    fitted = least_squares(loss, centre, bounds=(centre - 4.0, top), x_scale=spread)
    efficiency = at(fitted.x)
    return efficiency, measured - np.log(_predicted(batches, efficiency, len(trials)))


_MEMORY_PRIORS: Final = {
    "overhead_bytes": 0.5, "activation_factor": 0.2, "loss_factor": 0.3, "state_factor": 0.1,
}  # fmt: skip


def _fit_memory(trials: Sequence[MeasuredTrial]) -> tuple[MemoryConstants, Residual]:
    """Return the constants of memory of highest posterior, and the process on what they leave.

    Errors count by Cauchy's loss: readings of memory have outliers, such as another kernel for the
    loss, that no constant should follow.
    """
    default = CPU_MEMORY if trials[0].cluster.device.is_cpu else GPU_MEMORY
    start = trials[0].memory_prior or default
    w = concatenate([trial.workload for trial in trials])
    measured = np.log([trial.memory_bytes or 1.0 for trial in trials])
    names = list(_MEMORY_PRIORS)
    centre = np.log([getattr(start, name) for name in names])
    spread = np.array(list(_MEMORY_PRIORS.values()))

    def at(x: Array) -> MemoryConstants:
        return replace(start, **dict(zip(names, np.exp(x).tolist(), strict=True)))

    def loss(x: Array) -> Array:
        errors = (np.log(memory_use(w, at(x)).total) - measured) / _MEMORY_NOISE
        robust = np.sign(errors) * np.sqrt(np.log1p(errors**2))
        return np.concatenate([robust, (x - centre) / spread])

    fitted = least_squares(loss, centre, x_scale=spread)
    constants = at(fitted.x)
    left = measured - np.log(memory_use(w, constants).total)
    return constants, fit_residual(_features(w), left, robust=True)


def calibrate(trials: Sequence[MeasuredTrial]) -> Calibration:
    """Return the calibration that measured trials of one cluster support; none gives the defaults.

    Raises:
        ValueError: There is no trial at all, so that not even the device is known.
    """
    if not trials:
        raise ValueError("calibration needs at least one measured trial")
    result = uncalibrated(trials[0].cluster)
    timed = [trial for trial in trials if trial.step_seconds]
    weighed = [trial for trial in trials if trial.memory_bytes]
    if timed:
        efficiency, left = _fit_efficiency(timed)
        points = _features(concatenate([trial.workload for trial in timed]))
        result = replace(
            result,
            efficiency=efficiency,
            residual=fit_residual(points, left),
            num_trials=len(timed),
            spans=_spans(timed),
        )
    if weighed:
        memory, residual = _fit_memory(weighed)
        result = replace(
            result,
            memory=memory,
            memory_residual=residual,
            num_memory_trials=len(weighed),
        )
    return result


def _spans(trials: Sequence[MeasuredTrial]) -> tuple[tuple[str, float, float], ...]:
    w = concatenate([trial.workload for trial in trials])
    return tuple(
        (name, float(np.min(value)), float(np.max(value)))
        for name, of in _SPANS.items()
        for value in [np.asarray(of(w))]
    )
