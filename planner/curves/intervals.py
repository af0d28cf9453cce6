"""Intervals of coefficients, by one mechanism for every curve.

Bootstrap quantiles, widened for few rows; where the bootstrap shows a flat or bent direction (a
coefficient reaches a value at which it stops mattering, or its draws lie almost all to one side) the
profile of the objective replaces them (`profiles`). Coefficients that a design leaves wholly open are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.special import ndtr, stdtrit

from planner.curves.arrays import FloatArray, IntArray
from planner.curves.checks import require_level
from planner.curves.law import Coefficient
from planner.curves.problem import CurveProblem, minimize, require_identified
from planner.curves.profiles import LARGEST, as_coefficient, profile_coefficients
from planner.curves.robust import minimize_robust, robust_deviation

__all__ = [
    "CurveFit",
    "bootstrap_coefficients",
    "expanded_tail",
    "fit_curve",
    "has_flat_direction",
    "resampling_counts",
]

DEFAULT_DRAWS = 200

HUBER_DEVIATIONS = 1.5
"""Huber's delta where none is given, in robust deviations of the residuals of least squares."""

COARSE_GAIN = 1e-6
"""Relative decrease in one step at which least squares are near enough to choose delta."""

SEARCH_ITERATIONS = 60
"""Steps from each start, and again from the best with Huber's loss."""

LOPSIDED = 10.0
"""An interval that reaches so many times as far on one side as on the other, in logs where the
coefficient is positive, shows a valley that bends: quantiles then say where the draws stopped."""


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
        return robust_deviation(self.residual, self.theta.size)


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

    tail = Phi(-n/(n-p) t), t the quantile of Student's t with n - p degrees of freedom: few rows are
    no normal sample, and the residual of a row falls short of its error by its leverage, p/n on
    average, which the jackknife (HC3) makes good.

    Source: Hesterberg 2015 (The American Statistician 69, section 3.3), with HC3 (MacKinnon and
    White 1985, Journal of Econometrics 29) for its sqrt(n/(n-1)).

    >>> round(expanded_tail(0.9, 10**6, 5), 3), round(expanded_tail(0.9, 12, 4), 4)
    (0.05, 0.0026)
    """
    freedom = max(num_rows - num_coefficients, 1)
    quantile = stdtrit(freedom, 0.5 + 0.5 * level) * num_rows / freedom
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


def has_flat_direction(coefficients: Sequence[Coefficient]) -> bool:
    """Return whether a bootstrap interval is open, or all but one-sided (`LOPSIDED`)."""
    return any(_is_lopsided(c) for c in coefficients)


def _is_lopsided(coefficient: Coefficient) -> bool:
    low, value, high = coefficient.lower, coefficient.value, coefficient.upper
    if low is None or high is None:
        return True
    if low > 0:
        low, value, high = np.log(low), np.log(value), np.log(high)
    below, above = value - low, high - value
    return max(below, above) > LOPSIDED * min(below, above)


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
        ConfigError: The level is not in (0, 1).
        FitError: The design leaves a combination of coefficients open.
    """
    require_level(level)
    ones = np.ones((1, problem.target.size))
    weights = np.repeat(ones, len(starts), axis=0)
    if problem.delta is None:
        search = partial(
            minimize_robust,
            problem.model,
            problem.target,
            slopes=problem.slopes,
            iterations=SEARCH_ITERATIONS,
        )
        theta, value = search(starts, weights, delta=float("inf"), tolerance=COARSE_GAIN)
        best = theta[[value.argmin()]]
        deviation = robust_deviation(problem.model(best)[0] - problem.target)
        delta = max(HUBER_DEVIATIONS * deviation, 1e-9)
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
        coefficients = _intervals(problem, np.concatenate([best, starts]), draws, level)
    return CurveFit(
        theta=best[0],
        draws=draws,
        objective_value=float(value.min()),
        delta=delta,
        residual=problem.model(best)[0] - problem.target,
        coefficients=coefficients,
    )


def _without_intervals(
    problem: CurveProblem, theta: FloatArray, level: float
) -> tuple[Coefficient, ...]:
    return tuple(
        as_coefficient(name, value, None, None, level, {}, "none")
        for name, value in zip(problem.names, problem.natural(theta)[0], strict=True)
    )


def _intervals(
    problem: CurveProblem, theta: FloatArray, draws: FloatArray, level: float
) -> tuple[Coefficient, ...]:
    """Return the intervals at theta, shape (1 + m, p): the optimum, then where searches start."""
    with np.errstate(over="ignore"):
        values, natural = problem.natural(theta[:1])[0], problem.natural(draws)
    coefficients = bootstrap_coefficients(
        problem.names,
        values,
        np.clip(np.nan_to_num(natural, nan=np.inf), -LARGEST, LARGEST),
        level=level,
        tail=expanded_tail(level, problem.num_independent, theta.shape[1]),
        ranges=problem.ranges,
    )
    if has_flat_direction(coefficients):
        return profile_coefficients(problem, theta[0], level=level, starts=theta[1:])
    return coefficients
