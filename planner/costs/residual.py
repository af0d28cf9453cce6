"""Constants of a closed form and what it leaves, fitted together.

    log y = log f(x; c exp(u)) + g(x) + noise,   u ~ N(0, spread),   g ~ Gaussian process

Measured values move the constants and the process at once, each by as much as the prior lets it, so
that one odd trial drags no constant, and the variance of both gives the intervals. Noise has
Student's tails (Lange, Little and Taylor 1989): each trial's variance is inflated by how far it lies off.

Source: Rasmussen and Williams 2006, section 2.7 (explicit basis functions), equations 2.41 and 2.42.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from planner.costs.workload import Array, Workload

__all__ = ["Prior", "Process", "features", "fit_process"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prior:
    """Log standard deviations, before anything is measured, of what a closed form leaves."""

    effect: float = 0.08
    """Of an effect that is linear in one feature, per unit of `features`, and of a common one."""
    experts: float = 0.1
    """Of an effect of routed experts, and of its change in half a year of releases."""
    amplitude: float = 0.08
    """Of the process, which has no form."""
    noise: float = 0.05
    """Of one measurement repeated."""


_FREEDOM: Final = 4.0
"""Degrees of freedom of the noise."""
_RATE: Final = 0.7
"""Decay of the process's correlation per unit of distance."""
_PROCESS_SCALES: Final = (0.6, 1.0, 1.6)
_NOISE_SCALES: Final = (0.6, 1.0, 1.7, 3.0)
"""Multiples of the prior's process and of its noise that the marginal likelihood chooses among."""
_SCALE_LOG_SIGMA: Final = 0.4
_ROUNDS: Final = 8
_REFERENCE_RELEASE: Final = 2026.0


def features(w: Workload) -> Array:
    """Return what residuals may depend on, a row per configuration; a unit is a strong change.

    The last two are whether there are routed experts, and that times half-years of the framework's release.
    """
    experts = 1.0 * (np.asarray(w.num_experts) > 0)
    known = np.asarray(w.release) > 0
    half_years = np.where(known, (np.asarray(w.release) - _REFERENCE_RELEASE) / 0.5, 0.0)
    bits = np.log2(w.peak_flops_per_second / w.attention_peak_flops_per_second)
    columns = [
        np.log2(w.micro_batch * w.sequence_tokens / w.context / 4096.0) / 3.0,
        np.log2(w.d_model / 4096.0) / 2.0,
        np.log2(w.sequence_tokens / 4096.0) / 3.0,
        np.log2(w.tensor) / 2.0,
        np.log2(w.pipeline) / 2.0,
        np.log2(w.data) / 4.0,
        np.log2(w.context) / 2.0,
        np.log2(w.num_micro_batches) / 4.0,
        np.log2(w.virtual) / 3.0,
        np.asarray(w.recompute) / 2.0,
        np.asarray(w.is_fp8) * 1.0,
        np.asarray(w.is_fp8) * np.maximum(bits - 1.0, 0.0),
        np.asarray(w.zero_stage) / 3.0,
        np.asarray(w.flash) - 1.0,
        np.log2(1.0 + np.asarray(w.num_experts)) / 6.0,
        np.log2(w.head_dim / 128.0) / 2.0,
        half_years / 2.0,
        experts,
        experts * half_years,
    ]
    size = np.broadcast_shapes(*(np.shape(c) for c in columns))
    return np.stack([np.broadcast_to(c, size or (1,)) for c in columns], axis=1).astype(np.float64)


_SMOOTH: Final = 17
"""Features that the process sees; the two after them are the effects of experts."""


def covariance(a: Array, b: Array, prior: Prior) -> Array:
    """Return the prior covariance of residuals at two sets of points.

    effect^2 (1 + x x') + experts^2 (z z') + amplitude^2 exp(-0.7 |x - x'|), city-block.
    """
    x, y = a[:, :_SMOOTH], b[:, :_SMOOTH]
    distance = np.zeros((len(a), len(b)))
    for k in np.flatnonzero(np.ptp(np.concatenate([x, y]), axis=0) > 0):
        distance += np.abs(x[:, k, None] - y[None, :, k])
    smooth = prior.amplitude**2 * np.exp(-_RATE * distance)
    linear = prior.effect**2 * (1.0 + x @ y.T)
    return np.asarray(smooth + linear + prior.experts**2 * (a[:, _SMOOTH:] @ b[:, _SMOOTH:].T))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Process:
    """The posterior: of constants that the closed form is linear in near their fit, and of the process."""

    points: Array
    slopes: Array
    """Derivatives of log f by the logarithms of the constants, one row per trial."""
    inverse: Array
    """Of the covariance of the trials' residuals."""
    weights: Array
    constants: Array
    """Covariance of the constants' logarithms."""
    prior: Prior

    def at(self, points: Array, slopes: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of a measurement's logarithm less that of f."""
        cross = covariance(points, self.points, self.prior)
        mean = cross @ self.weights
        explained = cross @ self.inverse
        own = self.prior.amplitude**2 + self.prior.effect**2 * (
            1.0 + np.sum(points[:, :_SMOOTH] ** 2, axis=1)
        )
        own += self.prior.experts**2 * np.sum(points[:, _SMOOTH:] ** 2, axis=1)
        left = slopes - explained @ self.slopes
        variance = own - np.einsum("ij,ij->i", explained, cross)
        variance += np.einsum("ij,jk,ik->i", left, self.constants, left)
        return mean, np.sqrt(np.maximum(variance, 0.0) + self.prior.noise**2)


def _inflation(base: Array, off: Array, noise: float, inflation: Array) -> Array:
    """Return by how much each trial's noise variance is to be multiplied, two steps of EM further."""
    for _ in range(2):
        share = noise**2 * inflation
        inverse = np.linalg.inv(base + np.diag(share))
        left = share * (inverse @ off)
        square = left**2 + share - share**2 * np.diag(inverse)
        inflation = (_FREEDOM + square / noise**2) / (_FREEDOM + 1.0)
    return inflation


def _evidence(base: Array, off: Array, noise: float, inflation: Array) -> float:
    """Return the log density of residuals and inflations, up to a constant."""
    matrix = base + np.diag(noise**2 * inflation)
    _, log_determinant = np.linalg.slogdet(matrix)
    tails = 0.5 * _FREEDOM * np.sum(-np.log(inflation) - 1.0 / inflation)
    return float(-0.5 * off @ np.linalg.solve(matrix, off) - 0.5 * log_determinant + tails)


def _scaled(base: Array, common: Array, off: Array, prior: Prior) -> tuple[Prior, Array]:
    """Return the prior whose process and noise explain the residuals best, and the noise's inflation.

    Args:
        base: Prior covariance of the process at the trials.
        common: Covariance that the constants bring.
        off: Residuals.
        prior: What is scaled.
    """
    best = (-np.inf, prior, np.ones(len(off)))
    for process in _PROCESS_SCALES:
        for noise in _NOISE_SCALES:
            scaled = Prior(
                effect=prior.effect * process,
                experts=prior.experts * process,
                amplitude=prior.amplitude * process,
                noise=prior.noise * noise,
            )
            matrix = process**2 * base + common
            inflation = _inflation(matrix, off, scaled.noise, np.ones(len(off)))
            inflation = _inflation(matrix, off, scaled.noise, inflation)
            score = _evidence(matrix, off, scaled.noise, inflation)
            score -= 0.5 * (np.log(process) ** 2 + np.log(noise) ** 2) / _SCALE_LOG_SIGMA**2
            if score > best[0]:
                best = (score, scaled, inflation)
    return best[1], best[2]


def fit_process(
    model: Callable[[Array], Array],
    measured: Array,
    points: Array,
    spread: Array,
    bounds: tuple[Array, Array],
    prior: Prior,
) -> tuple[Array, Process]:
    """Return the constants of highest posterior with the process on what they leave.

    Args:
        model: From deviations u of the constants' logarithms to log f of the trials.
        measured: Logarithms of what was measured.
        points: Features of the trials.
        spread: Prior standard deviations of u.
        bounds: Least and greatest u.
        prior: Of the residuals.

    Raises:
        ValueError: Something measured is not positive and finite.
    """
    if not np.all(np.isfinite(measured)):
        raise ValueError("measured step seconds and bytes must be positive and finite")
    u, base = np.zeros(len(spread)), covariance(points, points, prior)
    value, slopes = model(u), slopes_of(model, u)
    for turn in range(_ROUNDS):
        off = measured - value + slopes @ u
        common = (slopes * spread**2) @ slopes.T
        if turn < 2:
            scaled, inflation = _scaled(base, common, off, prior)
        ratio = (scaled.amplitude / prior.amplitude) ** 2
        matrix = ratio * base + np.diag(scaled.noise**2 * inflation)
        step = spread**2 * (slopes.T @ np.linalg.solve(matrix + common, off))
        before, u = u, np.clip(step, *bounds)
        value, slopes = model(u), slopes_of(model, u)
        if np.max(np.abs(u - before)) < 0.01:
            break
    inverse = np.linalg.inv(matrix).astype(np.float64)
    precision = slopes.T @ inverse @ slopes + np.diag(spread**-2.0)
    constants = np.linalg.inv(precision).astype(np.float64)
    return u, Process(
        points=points,
        slopes=slopes,
        inverse=inverse,
        weights=inverse @ (measured - value),
        constants=constants,
        prior=scaled,
    )


def slopes_of(model: Callable[[Array], Array], u: Array) -> Array:
    """Return the derivatives of a model by its constants' logarithms, a column per constant."""
    steps = 0.02 * np.eye(len(u))
    return np.stack([(model(u + step) - model(u - step)) / 0.04 for step in steps], axis=1)
