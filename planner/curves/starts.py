"""Global starting points of the reference law by variable projection.

For fixed exponents the law `L = E + A exp(-alpha x) + B exp(-beta y)` is linear in (E, A, B).
A grid over (alpha, beta) with a non-negative least-squares solve in each cell therefore shows
the whole landscape at once, for many weightings of the same points (one row per bootstrap).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.curves.arrays import FloatArray, IntArray

__all__ = ["ExponentGrid", "local_minima", "project_grid"]

LOWEST_EXPONENT = 0.02
HIGHEST_EXPONENT = 1.6
"""Every published fit of this law to language models has its exponents well inside this range
(0.05 to 0.71 over 18 public sets); the Newton polish may leave it."""

SMALLEST_COEFFICIENT = 1e-6
"""Floor of E, A and B (in units of loss) before the logarithm is taken."""

RIDGE = 1e-12
"""Relative ridge on the normal matrix: below it two columns count as the same."""


@dataclass(frozen=True, slots=True)
class ExponentGrid:
    """Tables of exp(-alpha x) and exp(-beta y) shared by every weighting of the points.

    Shapes: `exponents` (g,), `powers_x` and `powers_y` (g, n), `features` (n, 1 + 4g + g*g):
    a constant, P, Q, P*P, Q*Q and all products of a row of P with a row of Q.
    """

    exponents: FloatArray
    powers_x: FloatArray
    powers_y: FloatArray
    features: FloatArray

    @classmethod
    def build(cls, x: FloatArray, y: FloatArray, *, size: int) -> ExponentGrid:
        """Return the tables for centred logs x and y, shape (n,)."""
        exponents = np.linspace(LOWEST_EXPONENT, HIGHEST_EXPONENT, size)
        powers_x = np.exp(-exponents[:, None] * x)
        powers_y = np.exp(-exponents[:, None] * y)
        cross = (powers_x[:, None, :] * powers_y[None, :, :]).reshape(size * size, -1)
        features = np.concatenate(
            [np.ones((1, x.size)), powers_x, powers_y, powers_x**2, powers_y**2, cross]
        ).T
        return cls(exponents, powers_x, powers_y, features)

    @property
    def size(self) -> int:
        """Exponents per axis."""
        return int(self.exponents.size)


def project_grid(
    grid: ExponentGrid, loss: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Solve the non-negative least-squares problem of every cell for every weighting.

    Minimises sum_i w_i (E + A P_i + B Q_i - L_i)^2 over E, A, B >= 0.

    Args:
        grid: Tables for the points.
        loss: Loss, shape (n,).
        weights: Weight of each point, shape (batch, n).

    Returns:
        Residual sums, shape (batch, g, g) with alpha before beta, and coefficients (E, A, B),
        shape (batch, g, g, 3).
    """
    size = grid.size
    moments = weights @ grid.features
    targets = (weights * loss) @ grid.features[:, : 1 + 2 * size]
    shape = (weights.shape[0], size, size)
    ones = moments[:, 0, None, None]
    p, q = moments[:, 1 : 1 + size, None], moments[:, None, 1 + size : 1 + 2 * size]
    pp, qq = (
        moments[:, 1 + 2 * size : 1 + 3 * size, None],
        moments[:, None, 1 + 3 * size : 1 + 4 * size],
    )
    pq = moments[:, 1 + 4 * size :].reshape(shape)
    l_1 = targets[:, 0, None, None]
    l_p, l_q = targets[:, 1 : 1 + size, None], targets[:, None, 1 + size :]
    total = ((weights * loss) @ loss)[:, None, None]

    # Eliminate the constant, then the two powers: a 2 x 2 problem in every cell.
    with np.errstate(divide="ignore", invalid="ignore"):
        free = _solve_pair(
            pp - p * p / ones,
            pq - p * q / ones,
            qq - q * q / ones,
            l_p - p * l_1 / ones,
            l_q - q * l_1 / ones,
        )
        e = (l_1 - free[0] * p - free[1] * q) / ones
        residual = total - e * l_1 - free[0] * l_p - free[1] * l_q
        best = _Best(shape)
        best.offer(residual, e, *free)
        pair = _solve_pair(pp, pq, qq, l_p, l_q)
        best.offer(total - pair[0] * l_p - pair[1] * l_q, 0.0, *pair)
        for power, square, target, slot in ((p, pp, l_p, 1), (q, qq, l_q, 2)):
            slope = (target - power * l_1 / ones) / (square - power * power / ones)
            intercept = (l_1 - slope * power) / ones
            parts: list[FloatArray | float] = [intercept, 0.0, 0.0]
            parts[slot] = slope
            best.offer(total - intercept * l_1 - slope * target, *parts)
            alone: list[FloatArray | float] = [0.0, 0.0, 0.0]
            alone[slot] = target / square
            best.offer(total - target * target / square, *alone)
        best.offer(total - l_1 * l_1 / ones, l_1 / ones, 0.0, 0.0)
    return best.residual, best.coefficients


def _solve_pair(
    s_pp: FloatArray, s_pq: FloatArray, s_qq: FloatArray, t_p: FloatArray, t_q: FloatArray
) -> tuple[FloatArray, FloatArray]:
    determinant = s_pp * s_qq * (1.0 + RIDGE) - s_pq * s_pq
    return (t_p * s_qq - t_q * s_pq) / determinant, (t_q * s_pp - t_p * s_pq) / determinant


class _Best:
    """The feasible active set of least residual in each cell, updated in place."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.residual = np.full(shape, np.inf)
        self.coefficients = np.zeros((*shape, 3))

    def offer(
        self,
        residual: FloatArray,
        e: FloatArray | float,
        a: FloatArray | float,
        b: FloatArray | float,
    ) -> None:
        feasible = (np.asarray(e) >= 0) & (np.asarray(a) >= 0) & (np.asarray(b) >= 0)
        better = feasible & (residual < self.residual)
        if better.all():
            self.residual[...] = residual
        else:
            np.copyto(self.residual, residual, where=better)
        for slot, value in enumerate((e, a, b)):
            np.copyto(self.coefficients[..., slot], value, where=better)


def local_minima(
    grid: ExponentGrid, residual: FloatArray, coefficients: FloatArray, *, keep: int
) -> tuple[FloatArray, IntArray]:
    """Return the best local minima of each residual map as starting points.

    Args:
        grid: The grid that was projected on.
        residual: Shape (batch, g, g).
        coefficients: (E, A, B), shape (batch, g, g, 3).
        keep: At most so many starts per map.

    Returns:
        theta = (a, b, e, alpha, beta) in centred logs, shape (starts, 5), and the row of the
        batch that each start belongs to, shape (starts,).
    """
    padded = np.pad(residual, ((0, 0), (1, 1), (1, 1)), constant_values=np.inf)
    size = grid.size
    is_minimum = np.isfinite(residual)
    for i in range(3):
        for j in range(3):
            if (i, j) != (1, 1):
                is_minimum &= residual <= padded[:, i : i + size, j : j + size]
    flat = np.where(is_minimum, residual, np.inf).reshape(residual.shape[0], -1)
    kept = np.argpartition(flat, min(keep, flat.shape[1] - 1), axis=1)[:, :keep]
    rows, ranks = np.nonzero(np.isfinite(np.take_along_axis(flat, kept, axis=1)))
    cells = kept[rows, ranks]
    chosen = coefficients.reshape(flat.shape[0], -1, 3)[rows, cells]
    logs = np.log(np.maximum(chosen, SMALLEST_COEFFICIENT))
    alpha, beta = grid.exponents[cells // size], grid.exponents[cells % size]
    return np.stack([logs[:, 1], logs[:, 2], logs[:, 0], alpha, beta], axis=1), rows.astype(
        np.int64
    )
