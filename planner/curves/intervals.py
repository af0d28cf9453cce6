"""Intervals of coefficients, by one mechanism for every curve.

Bootstrap quantiles, widened for few rows; where the bootstrap shows a flat direction (a coefficient
reaches a value at which it stops mattering) the profile of the objective replaces them
(`profiles`). Coefficients that a design leaves wholly open are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.special import ndtr, stdtrit

from planner.curves.arrays import FloatArray, IntArray
from planner.curves.law import Coefficient
from planner.curves.problem import (
    DEVIATION_OF_MEDIAN,
    CurveProblem,
    minimize,
    require_identified,
)
from planner.curves.profiles import LARGEST, as_coefficient, profile_coefficients
from planner.curves.robust import minimize_robust

__all__ = [
    "CurveFit",
    "bootstrap_coefficients",
    "expanded_tail",
    "fit_curve",
    "resampling_counts",
]

DEFAULT_DRAWS = 200

HUBER_DEVIATIONS = 1.5
"""Huber's delta where none is given, in robust deviations of the residuals of least squares."""

COARSE_GAIN = 1e-6
"""Relative decrease in one step at which least squares are near enough to choose delta."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CurveFit:
    """The optimum, its draws and the intervals of its coefficients."""

    theta: FloatArray
    """Shape (p,)."""
    draws: FloatArray
    """Bootstrap optima, shape (s, p)."""
    objective_value: float
    delta: float
    residual: FloatArray
    """Model less target, shape (n,)."""
    coefficients: tuple[Coefficient, ...]

    @property
    def noise(self) -> float:
        """Robust standard deviation of the residual, for the coefficients that were fitted."""
        freedom = max(self.residual.size - self.theta.size, 1)
        median = float(np.median(np.abs(self.residual)))
        return median * DEVIATION_OF_MEDIAN * float(np.sqrt(self.residual.size / freedom))


def resampling_counts(
    num_rows: int, num_draws: int, seed: int, group: IntArray | None = None
) -> FloatArray:
    """Return multinomial counts, shape (draws, n); rows of one group stay together."""
    numbers = np.arange(num_rows) if group is None else np.unique(group, return_inverse=True)[1]
    num_groups = int(numbers.max()) + 1
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=num_draws)
    return np.asarray(counts[:, numbers.ravel()], dtype=np.float64)


def expanded_tail(level: float, num_rows: int, num_coefficients: int) -> float:
    """Return the share of draws left out at either end of an interval.

    tail = Phi(-sqrt(n/(n-p)) t), t the quantile of Student's t with n - p degrees of freedom: a
    bootstrap deviates by sqrt((n-p)/n) of what it should, and few rows are no normal sample.

    Source: Hesterberg 2015 (The American Statistician 69, section 3.3), with p for one.

    >>> round(expanded_tail(0.9, 10**6, 5), 3), round(expanded_tail(0.9, 12, 4), 4)
    (0.05, 0.0114)
    """
    freedom = max(num_rows - num_coefficients, 1)
    quantile = stdtrit(freedom, 0.5 + 0.5 * level) * np.sqrt(num_rows / freedom)
    return float(ndtr(-quantile))


def bootstrap_coefficients(
    names: Sequence[str],
    values: FloatArray,
    draws: FloatArray,
    *,
    level: float,
    tail: float,
    ranges: Mapping[str, tuple[float, float]],
) -> tuple[Coefficient, ...]:
    """Return estimates with quantiles of their draws, shape (s, q); an end out of range is None.

    `tail` is the share of draws beyond either end, from `expanded_tail`.
    """
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    low, high = np.minimum(low, values), np.maximum(high, values)
    return tuple(
        as_coefficient(name, float(v), float(lo), float(hi), level, ranges, "bootstrap")
        for name, v, lo, hi in zip(names, values, low, high, strict=True)
    )


def fit_curve(
    problem: CurveProblem,
    starts: FloatArray,
    *,
    num_bootstraps: int = DEFAULT_DRAWS,
    level: float = 0.9,
    seed: int = 0,
) -> CurveFit:
    """Fit from every start, keep the best, and give each coefficient its interval.

    Args:
        problem: What is minimised.
        starts: theta, shape (b, p).
        num_bootstraps: Resamplings; 0 gives estimates without intervals (both ends None).
        level: Of the intervals, in (0, 1).
        seed: Of the resampling.

    Raises:
        FitError: The design leaves a combination of coefficients open.
    """
    ones = np.ones((1, problem.target.size))
    weights = np.repeat(ones, len(starts), axis=0)
    if problem.delta is None:
        search = partial(minimize_robust, problem.model, problem.target, slopes=problem.slopes)
        theta, value = search(starts, weights, delta=float("inf"), tolerance=COARSE_GAIN)
        best = theta[[value.argmin()]]
        delta = _adaptive_delta(problem.model(best)[0] - problem.target)
        best, value = search(best, ones, delta=delta, is_wide=True)
    else:
        delta = problem.delta
        theta, value = minimize(problem, starts, weights, delta)
        best = theta[[value.argmin()]]
    problem = replace(problem, delta=delta)
    require_identified(problem, np.concatenate([best, starts]))
    draws, coefficients = np.empty((0, best.shape[1])), _without_intervals(problem, best, level)
    if num_bootstraps:
        counts = resampling_counts(problem.target.size, num_bootstraps, seed, problem.group)
        begin = np.repeat(best, num_bootstraps, axis=0)
        draws, _ = minimize(problem, begin, counts, delta)
        coefficients = _intervals(problem, best, draws, level)
    return CurveFit(
        theta=best[0],
        draws=draws,
        objective_value=float(value.min()),
        delta=delta,
        residual=problem.model(best)[0] - problem.target,
        coefficients=coefficients,
    )


def _adaptive_delta(residual: FloatArray) -> float:
    deviation = float(np.median(np.abs(residual))) * DEVIATION_OF_MEDIAN
    return max(HUBER_DEVIATIONS * deviation, 1e-9)


def _without_intervals(
    problem: CurveProblem, theta: FloatArray, level: float
) -> tuple[Coefficient, ...]:
    return tuple(
        as_coefficient(name, value, None, None, level, {}, "none")
        for name, value in zip(problem.names, problem.natural(theta)[0], strict=True)
    )


def _intervals(
    problem: CurveProblem, best: FloatArray, draws: FloatArray, level: float
) -> tuple[Coefficient, ...]:
    with np.errstate(over="ignore"):
        values, natural = problem.natural(best)[0], problem.natural(draws)
    coefficients = bootstrap_coefficients(
        problem.names,
        values,
        np.clip(np.nan_to_num(natural, nan=np.inf), -LARGEST, LARGEST),
        level=level,
        tail=expanded_tail(level, problem.num_independent, best.shape[1]),
        ranges=problem.ranges,
    )
    if any(c.lower is None or c.upper is None for c in coefficients):
        return profile_coefficients(problem, best[0], level=level)
    return coefficients
