"""The global fit of the reference law L = E + A/N^alpha + B/D^beta and its restricted kin.

A grid by variable projection finds the basins, Newton polishes, and where the points are few (the
objective is then nearly a sum of absolute values with many vertices) scattered starts join in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.curves.arrays import FloatArray, IntArray, safe_exp
from planner.curves.newton import Restriction, SeparableProblem, minimize
from planner.curves.starts import ExponentGrid, local_minima, project_grid

__all__ = ["OBJECTIVES", "Objective", "SurfaceFit", "fit_surface", "tied_exponents"]

GRID_SIZE = 12
"""Exponents per axis. Eight to twenty-four give the same bootstrap optima on 240 points."""

MAX_GRID_POINTS = 2_000
"""The grid only finds basins, and so many points show them; the polish uses every point."""

BATCH_ELEMENTS = 40_000
"""Rows times points of one Newton batch: its work arrays then stay in the second-level cache."""

MANY_POINTS = 150
"""From so many points on, the grid alone finds the optimum on every public set."""

SCATTER_SEED = 20
"""Fixed: the same table gives the same fit."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What is summed over the points: Huber's loss of a residual in log or linear space."""

    name: str
    is_log: bool
    delta: float


OBJECTIVES = {
    item.name: item
    for item in (
        Objective("huber_log", True, 1e-3),
        Objective("huber", False, 1e-3),
        Objective("squared_log", True, float("inf")),
        Objective("squared", False, float("inf")),
    )
}
"""`huber_log` is that of Hoffmann et al. 2022, section 3.3 (delta = 1e-3)."""


@dataclass(frozen=True, slots=True)
class SurfaceFit:
    """One row per weighting: parameters (E, A, B, alpha, beta), shape (batch, 5)."""

    params: FloatArray
    objective: FloatArray


def tied_exponents() -> Restriction:
    """Restrict alpha = beta (Gadre et al. 2024, Muennighoff et al. 2023)."""
    return Restriction.placed([0, 1, 2, 3, 3])


def fit_surface(
    num_params: FloatArray,
    num_tokens: FloatArray,
    loss: FloatArray,
    *,
    objective: Objective = OBJECTIVES["huber_log"],
    weights: FloatArray | None = None,
    restriction: Restriction | None = None,
) -> SurfaceFit:
    """Fit L = E + A/N^alpha + B/D^beta to the global optimum, once per row of weights.

    Args:
        num_params: N, shape (n,).
        num_tokens: D, shape (n,).
        loss: L, shape (n,), positive.
        objective: What is summed.
        weights: Shape (batch, n), e.g. multinomial counts of a bootstrap; absent means one row
            of ones, which is fitted from more starts.
        restriction: Ties or pins in centred logs (see `newton.Restriction`).

    Source: Hoffmann et al. 2022 (arXiv:2203.15556), approach 3, for law and loss; variable
    projection after Golub and Pereyra 1973.

    >>> n, d = np.meshgrid([1e8, 3e8, 1e9], [2e9, 6e9, 2e10])
    >>> n, d = n.ravel(), d.ravel()
    >>> fit = fit_surface(n, d, 1.8 + 480 / n**0.35 + 2100 / d**0.37)
    >>> fit.params[0, 3:].round(4).tolist()
    [0.35, 0.37]
    """
    shift = np.array([np.log(num_params).mean(), np.log(num_tokens).mean()])
    x, y = np.log(num_params) - shift[0], np.log(num_tokens) - shift[1]
    problem = SeparableProblem(x, y, loss, is_log=objective.is_log, delta=objective.delta)
    grid_points = _evenly(loss.size, MAX_GRID_POINTS)
    grid = ExponentGrid.build(x[grid_points], y[grid_points], size=GRID_SIZE)
    if weights is None:
        theta, value = _fit_once(problem, grid, grid_points, restriction)
    else:
        theta, value = _fit_batches(problem, grid, grid_points, weights, restriction)
    return SurfaceFit(_natural(theta, shift), value)


def _evenly(num: int, most: int) -> slice:
    return slice(None, None, max(1, -(-num // most)))


def _natural(theta: FloatArray, shift: FloatArray) -> FloatArray:
    a, b, e, alpha, beta = theta.T
    of_size, of_tokens = safe_exp(a + alpha * shift[0]), safe_exp(b + beta * shift[1])
    return np.stack([safe_exp(e), of_size, of_tokens, alpha, beta], axis=1)


def _grid_starts(
    problem: SeparableProblem,
    grid: ExponentGrid,
    points: slice,
    weights: FloatArray,
    restriction: Restriction | None,
    keep: int,
) -> tuple[FloatArray, IntArray]:
    loss = problem.loss[points]
    scale = 1.0 / loss**2 if problem.is_log else np.ones_like(loss)
    residual, coefficients = project_grid(grid, loss, weights[:, points] * scale)
    if restriction is not None and restriction.basis[3] @ restriction.basis[4] > 0:
        residual = np.where(np.eye(grid.size, dtype=bool), residual, np.inf)
    return local_minima(grid, residual, coefficients, keep=keep)


def _fit_once(
    problem: SeparableProblem, grid: ExponentGrid, points: slice, restriction: Restriction | None
) -> tuple[FloatArray, FloatArray]:
    one = np.ones((1, problem.loss.size))
    starts, _ = _grid_starts(problem, grid, points, one, restriction, keep=4)
    phi, value = _polish(problem, starts, one, restriction)
    num_scattered = _num_scattered(problem.loss.size)
    for spread in (_scatter, _jitter) if num_scattered else ():
        more = spread(problem, _theta(phi[[value.argmin()]], restriction), num_scattered)
        more_phi, more_value = _polish(problem, more, one, restriction)
        phi, value = np.concatenate([phi, more_phi]), np.concatenate([value, more_value])
    best = [int(value.argmin())]
    return _theta(phi[best], restriction), value[best]


def _num_scattered(num_points: int) -> int:
    """More starts where points are few; none where every one of them finds the same optimum."""
    return 0 if num_points >= MANY_POINTS else int(np.clip(8_000 / num_points, 50, 400))


def _scatter(problem: SeparableProblem, best: FloatArray, num: int) -> FloatArray:
    """Random starts in centred logs, where most of them converge to the optimum."""
    unit = np.random.default_rng(SCATTER_SEED).random((num, 5))
    top = np.log(problem.loss.mean())
    lows = np.array([top - 4, top - 4, top - 6, 0.02, 0.02])
    highs = np.array([top, top, top, 1.5, 1.5])
    return np.asarray(lows + unit * (highs - lows))


def _jitter(problem: SeparableProblem, best: FloatArray, num: int) -> FloatArray:
    """Starts around the best so far, from near to far: vertices of the objective are neighbours."""
    generator = np.random.default_rng(SCATTER_SEED + 1)
    radius = np.geomspace(0.003, 0.5, num)[:, None]
    return np.asarray(best + radius * generator.standard_normal((num, 5)))


def _fit_batches(
    problem: SeparableProblem,
    grid: ExponentGrid,
    points: slice,
    weights: FloatArray,
    restriction: Restriction | None,
) -> tuple[FloatArray, FloatArray]:
    num, many = weights.shape[0], problem.loss.size >= MANY_POINTS
    warm = np.empty((0, 5))
    if num > 1 and not many:
        warm, _ = _fit_once(problem, grid, points, restriction)
    rows_at_once = max(1, BATCH_ELEMENTS // problem.loss.size)
    theta, value = np.empty((num, 5)), np.empty(num)
    for first in range(0, num, rows_at_once):
        batch = weights[first : first + rows_at_once]
        starts, owner = _grid_starts(problem, grid, points, batch, restriction, 1 if many else 2)
        starts = np.concatenate([starts, np.repeat(warm, len(batch), axis=0)])
        owner = np.concatenate([owner, np.tile(np.arange(len(batch)), len(warm))])
        phi, reached = _polish(problem, starts, batch[owner], restriction)
        order = np.lexsort((reached, owner))
        chosen = order[np.unique(owner[order], return_index=True)[1]]
        theta[first : first + rows_at_once] = _theta(phi[chosen], restriction)
        value[first : first + rows_at_once] = reached[chosen]
    return theta, value


def _polish(
    problem: SeparableProblem,
    theta: FloatArray,
    weights: FloatArray,
    restriction: Restriction | None,
) -> tuple[FloatArray, FloatArray]:
    if weights.shape[0] != theta.shape[0]:
        weights = np.broadcast_to(weights, (theta.shape[0], weights.shape[1]))
    if restriction is None:
        return minimize(problem, theta, weights)
    phi = (theta - restriction.offset) @ np.linalg.pinv(restriction.basis).T
    return minimize(problem, phi, weights, restriction=restriction)


def _theta(phi: FloatArray, restriction: Restriction | None) -> FloatArray:
    return phi if restriction is None else restriction.offset + phi @ restriction.basis.T
