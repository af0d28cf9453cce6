"""Profiles of an objective: how far a coefficient may go while all others follow at their best.

The interval where a bootstrap says little: along a flat direction (an asymptote at zero, E against
A and B, R_D*) its quantiles depend on where the search stopped. An end that the data do not bound
is `None`, never a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import erf, stdtrit

from planner.curves.arrays import FloatArray
from planner.curves.law import Coefficient
from planner.curves.problem import CurveProblem
from planner.curves.robust import (
    FINE_ITERATIONS,
    huber_sum,
    jacobian,
    minimize_robust,
    one_sided,
    robust_deviation,
)

__all__ = ["LARGEST", "as_coefficient", "profile_coefficients", "profile_of"]

PROFILE_STEPS = (1.0, 2.0, 3.5, 7.0, 15.0)
"""Where a profile is taken, in standard errors on either side, besides the end of the range."""

REFINEMENT = 4
"""Equal pieces into which a step that crosses the allowance is cut."""

STEEP, MOST_REFINEMENTS = 4.0, 6
"""A step that rises to more than so many allowances is cut again, so many times at most: a valley that
is flat on one side ends at a wall on the other, which no standard error foretells."""

SEARCH_ITERATIONS = 20
"""Steps from each start, after which the best of each held value and its neighbours go on."""

SEARCH_GAIN, PROFILE_GAIN = 1e-3, 1e-7
"""Relative decrease of the objective in one step at which either has arrived."""

LARGEST = 1e200
"""Numbers beyond it mean nothing: an end there is open."""

FARTHEST_LOG = 12.0
"""A profile follows a positive coefficient over so many e-folds."""

HOLD = 100.0
"""Weight of the squared distance that holds a coefficient in place while the others move."""


def as_coefficient(
    name: str,
    value: float,
    lower: float | None,
    upper: float | None,
    level: float,
    ranges: Mapping[str, tuple[float, float]],
    method: str,
) -> Coefficient:
    """Return a coefficient whose ends outside its range are None."""
    floor, ceiling = ranges.get(name, (-np.inf, np.inf))
    floor, ceiling = max(floor, -0.1 * LARGEST), min(ceiling, 0.1 * LARGEST)
    is_open_below = lower is None or (lower < floor and value > 0)
    is_open_above = upper is None or upper > ceiling
    return Coefficient(
        name=name,
        value=float(value),
        lower=None if is_open_below or lower is None else float(lower),
        upper=None if is_open_above or upper is None else float(upper),
        level=level,
        method=method,
    )


def profile_coefficients(
    problem: CurveProblem,
    theta: FloatArray,
    *,
    level: float = 0.9,
    starts: FloatArray | None = None,
) -> tuple[Coefficient, ...]:
    """Return the coefficients whose objective, all others at their best, is within the allowance.

    The interval ends where the profile crosses the allowance, between the points at which it was
    taken; an end at which it never does, up to the coefficient's range, is None.

    Args:
        problem: With its delta.
        theta: The optimum, shape (p,).
        level: Of the intervals.
        starts: Other theta to begin at, shape (m, p): the valley along a coefficient may not be
            the one the optimum lies in.
    """
    values = problem.natural(theta[None])[0]
    found = []
    for place, (name, value) in enumerate(zip(problem.names, values, strict=True)):
        profile = _Profile.of(problem, theta, place, starts)
        low, high = (value, value) if profile is None else profile.ends(level)
        found.append(as_coefficient(name, value, low, high, level, {}, "profile"))
    return tuple(found)


def profile_of(
    problem: CurveProblem, theta: FloatArray, name: str
) -> tuple[tuple[float, float], ...]:
    """Return (value, objective with all others at their best) along one coefficient, ascending."""
    profile = _Profile.of(problem, theta, problem.names.index(name))
    return () if profile is None else profile.heights()


@dataclass(frozen=True, slots=True)
class _Profile:
    """The objective along one coefficient, the others at their best."""

    problem: CurveProblem
    theta: FloatArray
    place: int
    is_log: bool
    towards: FloatArray
    """Change of theta per unit of the coordinate along the floor of the valley, shape (p,)."""
    error: float
    """Standard error of the coordinate."""
    others: FloatArray
    """Further theta to begin at, shape (m, p)."""

    @classmethod
    def of(
        cls,
        problem: CurveProblem,
        theta: FloatArray,
        place: int,
        starts: FloatArray | None = None,
    ) -> _Profile | None:
        """Return the profile, or None where the coefficient is a constant of the form."""
        value = problem.natural(theta[None])[0, place]
        others = theta[None] if starts is None else starts
        bare = cls(problem, theta, place, bool(value > 0), np.zeros_like(theta), 0.0, others)
        gradient = jacobian(lambda at: bare.coordinate(at)[:, None], theta[None])[0, 0]
        if not np.abs(gradient).max() > 1e-9:
            return None
        slopes = problem.slopes or (lambda at: jacobian(problem.model, at))
        matrix = slopes(theta[None])[0]
        residual = problem.model(theta[None])[0] - problem.target
        metric = matrix.T @ matrix
        metric += 1e-9 * np.trace(metric) / len(metric) * np.eye(len(metric))
        direction = np.linalg.solve(metric, gradient)
        variance = float(gradient @ direction)
        error = max((robust_deviation(residual) + 1e-9) * np.sqrt(variance), 1e-6)
        return replace(bare, towards=direction / variance, error=error)

    def coordinate(self, theta: FloatArray) -> FloatArray:
        """Return the coefficient, in logs where it is positive, shape (b,)."""
        value = self.problem.natural(theta)[:, self.place]
        return np.asarray(np.log(np.maximum(value, 1e-300)) if self.is_log else value)

    def ends(self, level: float) -> tuple[float | None, float | None]:
        """Return where the profile crosses the allowance on either side."""
        places, thetas, heights = self._taken()
        allowance = _allowance(self.problem, self.theta, level)
        for _ in range(MOST_REFINEMENTS):
            allowed = float(heights.min()) + allowance
            steps = _steep_steps(heights, allowed, allowed + (STEEP - 1.0) * allowance)
            if not steps:
                break
            share = np.arange(1, REFINEMENT) / REFINEMENT
            held = np.concatenate([places[i] + share * (places[i + 1] - places[i]) for i in steps])
            begin = np.repeat([[thetas[i], thetas[i + 1]] for i in steps], share.size, axis=0)
            reached, more = self._held(held, begin.transpose(1, 0, 2))
            order = np.argsort(places := np.concatenate([places, held]), kind="stable")
            thetas = np.concatenate([thetas, reached])[order]
            places, heights = places[order], np.concatenate([heights, more])[order]
        allowed = float(heights.min()) + allowance
        low = _crossing(places[::-1], heights[::-1], allowed)
        high = _crossing(places, heights, allowed)
        return (
            None if low is None else self._value(low),
            None if high is None else self._value(high),
        )

    def heights(self) -> tuple[tuple[float, float], ...]:
        """Return (value, objective) from one end of the range to the other."""
        places, _, heights = self._taken()
        return tuple(
            (self._value(float(x)), float(y)) for x, y in zip(places, heights, strict=True)
        )

    def _taken(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return coordinates (k,), ascending, the best theta (k, p) and objective (k,) at each.

        The optimum is one of them.
        """
        origin = float(self.coordinate(self.theta[None])[0])
        below, above = (self._points(origin, limit) for limit in self._limits(origin))
        places = np.concatenate([below[::-1], [origin], above])
        thetas, heights = self._searched(origin, places)
        heights[below.size] = min(heights[below.size], self._least())
        return places, thetas, heights

    def _value(self, coordinate: float) -> float:
        return float(np.exp(coordinate)) if self.is_log else coordinate

    def _limits(self, origin: float) -> tuple[float, float]:
        name = self.problem.names[self.place]
        low, high = self.problem.ranges.get(name, (-np.inf, np.inf))
        if self.is_log:
            low, high = np.log(max(low, 1e-300)), np.log(high) if high < np.inf else np.inf
            low, high = max(low, origin - FARTHEST_LOG), min(high, origin + FARTHEST_LOG)
        return min(low, origin - 1e-6), max(high, origin + 1e-6)

    def _points(self, origin: float, limit: float) -> FloatArray:
        """Return coordinates from the optimum outwards, the limit last if it is finite."""
        side = 1.0 if limit > origin else -1.0
        points = origin + side * self.error * np.array(PROFILE_STEPS)
        points = points[side * points < side * limit]
        if not np.isfinite(limit):
            return points
        return np.concatenate(
            [points, np.linspace(points[-1] if points.size else origin, limit, 3)[1:]]
        )

    def _least(self) -> float:
        residual = self.problem.model(self.theta[None]) - self.problem.target
        return float(huber_sum(residual, np.ones_like(residual), self._delta)[0])

    def _searched(self, origin: float, held: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the best theta (k, p) with the coefficient held at each coordinate, objective (k,).

        Twice, where the form has no better search: a few steps along the valley from the optimum, and
        from every other start; then from the best of either, which may lie in valleys of their own,
        and from what the neighbours on either side found.
        """
        away = (held - origin)[:, None] * self.towards
        starts = np.stack([self.theta + away, *(np.tile(x, (held.size, 1)) for x in self.others)])
        if self.problem.hold is not None:
            return self._held(held, starts)
        near, height = self._held(held, starts[:1], is_search=True)
        far, other = self._held(held, starts[1:], is_search=True)
        best = np.where((height <= other)[:, None], near, far)
        inner, outer = np.roll(best, 1, axis=0), np.roll(best, -1, axis=0)
        inner[0], outer[-1] = best[0], best[-1]
        return self._held(held, np.stack([near, far, inner, outer]))

    def _held(
        self, held: FloatArray, starts: FloatArray, *, is_search: bool = False
    ) -> tuple[FloatArray, FloatArray]:
        """Return the best theta (k, p) and objective (k,) from starts (s, k, p).

        A search takes a few steps while Huber's delta narrows; otherwise the starts are near.
        """
        problem, (num, size, width) = self.problem, starts.shape
        if problem.hold is not None:
            return problem.hold(self.place, held, starts)

        def model(theta: FloatArray) -> FloatArray:
            miss = HOLD * (self.coordinate(theta[:, 1:]) - theta[:, 0])
            return np.concatenate([problem.model(theta[:, 1:]), miss[:, None]], axis=1)

        def slopes(theta: FloatArray) -> FloatArray:
            of_miss = HOLD * jacobian(lambda at: self.coordinate(at)[:, None], theta[:, 1:])
            both = np.concatenate([slopes_of(theta[:, 1:]), of_miss], axis=1)
            return np.pad(both, ((0, 0), (0, 0), (1, 0)))

        slopes_of = problem.slopes or (lambda at: one_sided(problem.model, at))
        delta = np.full(problem.target.size + 1, self._delta)
        delta[-1] = np.inf
        theta, value = minimize_robust(
            model,
            np.append(problem.target, 0.0),
            np.column_stack([np.tile(held, num), starts.reshape(-1, width)]),
            np.ones((num * size, delta.size)),
            delta=delta,
            slopes=slopes,
            is_wide=not is_search,
            iterations=SEARCH_ITERATIONS if is_search else FINE_ITERATIONS,
            tolerance=SEARCH_GAIN if is_search else PROFILE_GAIN,
        )
        best = value.reshape(num, size).argmin(axis=0)
        rows = np.arange(size)
        return theta[:, 1:].reshape(num, size, width)[best, rows], value.reshape(num, size)[
            best, rows
        ]

    @property
    def _delta(self) -> float:
        return np.inf if self.problem.delta is None else self.problem.delta


def _steep_steps(heights: FloatArray, allowed: float, steep: float) -> list[int]:
    """Return the first place of each step that leads from what is allowed to beyond `steep`."""
    within = np.flatnonzero(heights <= allowed)
    first, last = int(within[0]), int(within[-1])
    below = [first - 1] if first > 0 and heights[first - 1] > steep else []
    above = [last] if last < heights.size - 1 and heights[last + 1] > steep else []
    return below + above


def _crossing(places: FloatArray, heights: FloatArray, allowed: float) -> float | None:
    """Return where heights last rise above what is allowed, in the order of places.

    Between two places the root of the rise is taken as straight, as it is for a parabola.
    """
    last = int(np.flatnonzero(heights <= allowed)[-1])
    if last == len(places) - 1:
        return None
    inside, outside, edge = np.sqrt(
        np.maximum(np.array([heights[last], heights[last + 1], allowed]) - heights.min(), 0.0)
    )
    share = (edge - inside) / (outside - inside) if np.isfinite(outside) else 1.0
    return float(places[last] + np.clip(share, 0.0, 1.0) * (places[last + 1] - places[last]))


def _allowance(problem: CurveProblem, theta: FloatArray, level: float) -> float:
    """Return how far a profile may rise: t^2 E[psi^2] n / (2 E[psi'] (n - p)) for Huber's loss.

    E[psi'] is that of a normal with the robust deviation of the residuals: a fit that passes through
    some of its rows has more residuals near zero than there is noise. For the same reason Huber's
    further factor K^2, for an E[psi'] that is counted among the residuals, is left out. The sum of
    psi is taken over rows that err together before it is squared.

    Source: Huber 1981 (Robust Statistics), equations 7.6.5 and 7.6.6, for n - p.
    """
    delta = np.inf if problem.delta is None else problem.delta
    residual = problem.model(theta[None])[0] - problem.target
    psi = np.clip(residual, -delta, delta)
    slope = 1.0
    if np.isfinite(delta):
        deviation = robust_deviation(residual, theta.size)
        slope = float(erf(delta / (np.sqrt(2.0) * max(deviation, 1e-12))))
    slope = max(slope, 1e-6)
    variance = float((psi**2).mean())
    if problem.group is not None:
        number = np.unique(problem.group, return_inverse=True)[1].ravel()
        together = float((np.bincount(number, weights=psi) ** 2).sum() / psi.size)
        variance = max(variance, together)
    num = problem.num_independent
    freedom = max(num - theta.size, 1)
    quantile = float(stdtrit(freedom, 0.5 + 0.5 * level))
    return float(0.5 * quantile**2 * variance / slope * num / freedom)
