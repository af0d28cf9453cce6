"""Constants of a closed form and what it leaves, fitted together.

    log y = log f(x; c exp(u)) + g(x) + noise,   u ~ N(0, spread),   g ~ Gaussian process

Measured values move the constants and the process at once, each by as much as the prior lets it, so
that one odd trial drags no constant, and the variance of both gives the intervals. How much of the correction is believed is
decided by what trials say of those that are left out. Noise has
Student's tails (Lange, Little and Taylor 1989): each trial's variance is inflated by how far it lies off.

Source: Rasmussen and Williams 2006, section 2.7 (explicit basis functions), equations 2.41 and 2.42.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    kernels: float = 0.06
    """Of what configurations with the same products have in common and others not: the library's kernels."""
    noise: float = 0.05
    """Of one measurement repeated."""
    expert_noise: float = 1.7
    """Noise with routed experts, over `noise`: 14.0 % at the 90th percentile among repetitions of one
    configuration in Megatron-Bridge's tables (benchmarks/costs.py) are 8.5 % of standard deviation."""


_FREEDOM: Final = 4.0
"""Degrees of freedom of the noise."""
_RATE: Final = 0.7
"""Decay of the process's correlation per unit of distance."""
_PROCESS_SCALES: Final = (0.6, 1.0, 1.6)
_NOISE_SCALES: Final = (0.6, 1.0, 1.7, 3.0)
"""Multiples of the prior's process and of its noise over which the marginal likelihood averages."""
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


_PRODUCTS: Final = [0, 1, 3, 14]
"""Features that decide the shapes of a layer's products: tokens, width, tensor degree, experts."""


def _relative_noise(points: Array, prior: Prior) -> Array:
    """Return each configuration's noise over that of a dense one."""
    return np.where(points[:, _SMOOTH] > 0, prior.expert_noise, 1.0)


def covariance(a: Array, b: Array, prior: Prior) -> Array:
    """Return the prior covariance of residuals at two sets of points.

    effect^2 (1 + x x') + experts^2 (z z') + amplitude^2 exp(-0.7 |x - x'|), city-block, and kernels^2
    between configurations with the same products.
    """
    x, y = a[:, :_SMOOTH], b[:, :_SMOOTH]
    distance = np.zeros((len(a), len(b)))
    for k in np.flatnonzero(np.ptp(np.concatenate([x, y]), axis=0) > 0):
        distance += np.abs(x[:, k, None] - y[None, :, k])
    smooth = prior.amplitude**2 * np.exp(-_RATE * distance)
    linear = prior.effect**2 * (1.0 + x @ y.T)
    u, v = a[:, _PRODUCTS], b[:, _PRODUCTS]
    smooth += prior.kernels**2 * np.all(u[:, None] == v[None], axis=2)
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
        own = (
            self.prior.kernels**2
            + self.prior.amplitude**2
            + self.prior.effect**2 * (1.0 + np.sum(points[:, :_SMOOTH] ** 2, axis=1))
        )
        own += self.prior.experts**2 * np.sum(points[:, _SMOOTH:] ** 2, axis=1)
        left = slopes - explained @ self.slopes
        variance = own - np.einsum("ij,ij->i", explained, cross)
        variance += np.einsum("ij,jk,ik->i", left, self.constants, left)
        return mean, np.sqrt(
            np.maximum(variance, 0.0)
            + (self.prior.noise * _relative_noise(points, self.prior)) ** 2
        )


def _inflation(base: Array, off: Array, noise: Array, inflation: Array) -> Array:
    """Return by how much each trial's noise variance is to be multiplied, two steps of EM further."""
    for _ in range(2):
        share = noise**2 * inflation
        inverse = np.linalg.inv(base + np.diag(share))
        left = share * (inverse @ off)
        square = left**2 + share - share**2 * np.diag(inverse)
        inflation = (_FREEDOM + square / noise**2) / (_FREEDOM + 1.0)
    return inflation


def _evidence(base: Array, off: Array, noise: Array, inflation: Array) -> float:
    """Return the log density of residuals and inflations, up to a constant."""
    matrix = base + np.diag(noise**2 * inflation)
    _, log_determinant = np.linalg.slogdet(matrix)
    tails = 0.5 * _FREEDOM * np.sum(-np.log(inflation) - 1.0 / inflation)
    return float(-0.5 * off @ np.linalg.solve(matrix, off) - 0.5 * log_determinant + tails)


def _scaled(
    base: Array, common: Array, off: Array, relative: Array, prior: Prior
) -> tuple[Prior, Array]:
    """Return the prior whose process and noise explain the residuals, and the noise's inflation.

    The scales are the posterior mean of their logarithms: a few trials seldom single one out.

    Args:
        base: Prior covariance of the process at the trials.
        common: Covariance that the constants bring.
        off: Residuals.
        relative: Noise of each trial over that of a dense one.
        prior: What is scaled.
    """

    def at(process: float, noise: float) -> tuple[Prior, Array, float]:
        scaled = replace(
            prior,
            effect=prior.effect * process,
            experts=prior.experts * process,
            amplitude=prior.amplitude * process,
            kernels=prior.kernels * process,
            noise=prior.noise * noise,
        )
        matrix, sigma = process**2 * base + common, scaled.noise * relative
        inflation = _inflation(matrix, off, sigma, np.ones(len(off)))
        inflation = _inflation(matrix, off, sigma, inflation)
        score = _evidence(matrix, off, sigma, inflation)
        score -= 0.5 * (np.log(process) ** 2 + np.log(noise) ** 2) / _SCALE_LOG_SIGMA**2
        return scaled, inflation, score

    grid = np.array([(process, noise) for process in _PROCESS_SCALES for noise in _NOISE_SCALES])
    scores = np.array([at(process, noise)[2] for process, noise in grid])
    share = np.exp(scores - scores.max())
    process, noise = np.exp(share @ np.log(grid) / share.sum())
    return at(process, noise)[:2]


def _trusted_share(covariance_of_off: Array, off: Array, points: Array) -> float:
    """Return the share of the correction that predicts trials which were left out best, at most 1.

    Each configuration is predicted from the others (Rasmussen and Williams 2006, equation 5.12, by block);
    the share is the least-squares coefficient of what they say, weighted by its variance, with the whole
    correction as one trial's worth of prior (stacking, Breiman 1996). Trials that contradict each
    other leave the defaults nearly as they are.

    Args:
        covariance_of_off: Of the trials' logarithms about the defaults, noise included.
        off: Their logarithms less those of the defaults.
        points: Features; equal rows are one configuration.
    """
    group = np.unique(points, axis=0, return_inverse=True)[1].ravel()
    if group.max() < 2:
        return 1.0
    inverse = np.linalg.inv(covariance_of_off)
    weighted, left, variance = inverse @ off, np.empty(len(off)), np.empty(len(off))
    for g in range(group.max() + 1):
        own = np.flatnonzero(group == g)
        block = np.linalg.inv(inverse[np.ix_(own, own)])
        left[own], variance[own] = block @ weighted[own], np.diag(block)
    said = off - left
    share = (np.sum(said * off / variance) + 1.0) / (np.sum(said**2 / variance) + 1.0)
    return float(np.clip(share, 0.0, 1.0))


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
    relative = _relative_noise(points, prior)
    u, base = np.zeros(len(spread)), covariance(points, points, prior)
    default = value = model(u)
    slopes, is_shrunk = slopes_of(model, u), False
    for turn in range(2 * _ROUNDS):
        off = measured - value + slopes @ u
        common = (slopes * spread**2) @ slopes.T
        if turn < 2:
            scaled, inflation = _scaled(base, common, off, relative, prior)
        ratio = (scaled.amplitude / prior.amplitude) ** 2
        matrix = ratio * base + np.diag((scaled.noise * relative) ** 2 * inflation)
        step = spread**2 * (slopes.T @ np.linalg.solve(matrix + common, off))
        before, u = u, np.clip(step, *bounds)
        value, slopes = model(u), slopes_of(model, u)
        if np.max(np.abs(u - before)) < 0.01 or turn == _ROUNDS - 1:
            if is_shrunk:
                break
            is_shrunk = True
            share = _trusted_share(matrix + common, measured - default, points)
            measured = default + share * (measured - default)
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
