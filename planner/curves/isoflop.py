"""IsoFLOP profiles: the best size of each budget read off its own points, and their power law.

No law of loss is assumed, so it errs differently from the parametric surface; the two are
compared, and both enter the recommended size (`allocation`). A budget whose minimum lies at the
edge of its sizes, or whose curve is not convex, is left out with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from planner.curves.arrays import FloatArray, IntArray
from planner.curves.points import Points, count_distinct
from planner.errors import FitError

__all__ = [
    "IsoflopProfile",
    "SizeFrontier",
    "fit_frontier",
    "fit_size_line",
    "group_values",
    "isoflop_profiles",
    "size_of",
]

BUDGET_TOLERANCE = 0.1
"""Rows whose compute differs by less than this fraction share a budget."""

MIN_SIZES = 4
"""A parabola through three points always fits."""

MIN_BUDGETS = 3

SIZE_WINDOW = 8.0
"""Sizes within this factor of the best one: further out the curve is no parabola."""

FARTHEST_LOG = 300.0
"""Of a size, on either side: an interval that reaches beyond says nothing, and its end stays a number."""

LEAST_NOISE = 0.02
"""Of log N*: places that happen to lie on a line do not make it certain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IsoflopProfile:
    """The parabola of one budget: L = loss + curvature (log N - log best)^2."""

    train_flops: float
    num_sizes: int
    best_num_params: float | None
    best_loss: float | None
    curvature: float
    refusal: str | None = None
    """Why this budget says nothing about the best size; absent when it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeFrontier:
    """log N* = intercept + slope (log C - center): the exponent of the best size is `slope`."""

    intercept: float
    slope: float
    center: float
    noise: float
    """Standard deviation of log N* of one budget around the line."""
    num_budgets: int
    """Places that the line goes through: budgets, or sizes on an envelope."""
    spread: float
    """Sum of squared log C around the centre."""

    def log_best_params(self, train_flops: float) -> tuple[float, float]:
        """Return log N* at a budget and the standard deviation of that prediction."""
        away = float(np.log(train_flops)) - self.center
        variance = self.noise**2 * (1 / self.num_budgets + away**2 / self.spread)
        return self.intercept + self.slope * away, float(np.sqrt(variance))

    def exponent_interval(self, level: float) -> tuple[float, float]:
        """Return the interval of the slope, by Student's t."""
        half = self._quantile(level) * self.noise / np.sqrt(self.spread)
        return float(self.slope - half), float(self.slope + half)

    def size_interval(self, train_flops: float, level: float) -> tuple[float, float, float]:
        """Return N* at a budget and its interval, by Student's t."""
        log_size, deviation = self.log_best_params(train_flops)
        half = self._quantile(level) * deviation
        low, middle, high = size_of([log_size - half, log_size, log_size + half])
        return float(middle), float(low), float(high)

    def _quantile(self, level: float) -> float:
        return float(stdtrit(max(self.num_budgets - 2, 1), 0.5 + 0.5 * level))


def size_of(log_size: ArrayLike) -> FloatArray:
    """Return sizes of their logs, those beyond `FARTHEST_LOG` held there."""
    return np.asarray(np.exp(np.clip(log_size, -FARTHEST_LOG, FARTHEST_LOG)))


def group_values(values: FloatArray, tolerance: float = BUDGET_TOLERANCE) -> IntArray:
    """Return a number of its budget (or size) for every row, from the smallest up.

    >>> group_values(np.array([1e18, 3e18, 1.02e18])).tolist()
    [0, 1, 0]
    """
    groups = np.empty(values.size, dtype=np.int64)
    group, first = -1, 0.0
    for row in np.argsort(values):
        if group < 0 or values[row] > first * (1 + tolerance):
            group, first = group + 1, float(values[row])
        groups[row] = group
    return groups


def isoflop_profiles(points: Points) -> tuple[IsoflopProfile, ...]:
    """Return one profile per budget that has at least four sizes.

    Source: Hoffmann et al. 2022 (arXiv:2203.15556), approach 2.
    """
    budgets = group_values(points.compute_flops)
    profiles = []
    for budget in np.unique(budgets):
        rows = points.where(budgets == budget)
        if count_distinct(rows.num_params) >= MIN_SIZES:
            profiles.append(_profile(rows))
    return tuple(profiles)


def _profile(rows: Points) -> IsoflopProfile:
    log_n = np.log(rows.num_params)
    flops = float(np.median(rows.compute_flops))
    near = np.abs(log_n - log_n[rows.loss.argmin()]) <= np.log(SIZE_WINDOW)
    while count_distinct(rows.num_params[near]) < MIN_SIZES:
        distance = np.abs(log_n - log_n[rows.loss.argmin()])
        near |= distance <= distance[~near].min()
    center = log_n[near].mean()
    curvature, slope, constant = np.polyfit(log_n[near] - center, rows.loss[near], 2)
    num_sizes = count_distinct(rows.num_params)
    refusal, vertex, loss = None, None, None
    if curvature <= 0:
        refusal = f"concave (curvature {curvature:.3g}): train smaller and larger sizes"
    else:
        log_vertex = center - slope / (2 * curvature)
        loss = float(constant - slope**2 / (4 * curvature))
        vertex = float(np.exp(log_vertex))
        if not log_n.min() < log_vertex < log_n.max():
            side = "smaller" if log_vertex <= log_n.min() else "larger"
            refusal = (
                f"its best size {vertex:.3g} lies outside the sizes "
                f"{rows.num_params.min():.3g} to {rows.num_params.max():.3g}: train {side} ones"
            )
    return IsoflopProfile(
        train_flops=flops,
        num_sizes=num_sizes,
        best_num_params=vertex,
        best_loss=loss,
        curvature=float(curvature),
        refusal=refusal,
    )


def fit_frontier(profiles: tuple[IsoflopProfile, ...]) -> SizeFrontier:
    """Fit the power law of the best size through the profiles that are not refused.

    Raises:
        FitError: Fewer than three budgets are usable; the message says why the others are not.
    """
    usable = [p for p in profiles if p.refusal is None and p.best_num_params is not None]
    if len(usable) < MIN_BUDGETS:
        reasons = "; ".join(
            f"at {p.train_flops:.3g} FLOPs {p.refusal}" for p in profiles if p.refusal
        )
        raise FitError(
            f"an IsoFLOP frontier needs at least {MIN_BUDGETS} budgets with {MIN_SIZES} sizes "
            f"around their best: got {len(usable)} of {len(profiles)}"
            + (f" ({reasons})." if reasons else "."),
            hint="Train each of three budgets at four or more sizes.",
        )
    log_c = np.log([p.train_flops for p in usable])
    log_n = np.log([p.best_num_params for p in usable if p.best_num_params is not None])
    return fit_size_line(log_c, log_n)


def fit_size_line(log_flops: FloatArray, log_params: FloatArray) -> SizeFrontier:
    """Fit the power law of the best size through its logs at three places or more, shape (k,)."""
    center = float(log_flops.mean())
    away = log_flops - center
    spread = float((away**2).sum())
    slope = float((away * log_params).sum() / spread)
    intercept = float(log_params.mean())
    residual = log_params - intercept - slope * away
    noise = float(np.sqrt((residual**2).sum() / max(log_flops.size - 2, 1)))
    return SizeFrontier(
        intercept=intercept,
        slope=slope,
        center=center,
        noise=max(noise, LEAST_NOISE),
        num_budgets=int(log_flops.size),
        spread=spread,
    )
