"""Damped Newton for the separable law L = E + A N^-alpha + B D^-beta, many problems at once.

Works in centred logs `x = log N - mean`, `y = log D - mean` with `theta = (a, b, e, alpha, beta)`:
`s = exp(a - alpha x) + exp(b - beta y) + exp(e)`. In these coordinates the problem is well
conditioned; in raw logs it is not. Huber's loss is reached by a homotopy from a wide delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.curves.arrays import BoolArray, FloatArray

__all__ = ["HOMOTOPY", "Restriction", "SeparableProblem", "minimize"]

NUM_THETA = 5
HOMOTOPY = (30.0, 10.0, 3.0)
"""Wider deltas, as multiples of the one asked for, that lead to it."""

COARSE_ITERATIONS = 6
FINE_ITERATIONS = 80
LARGEST_DAMPING = 1e8
RELATIVE_DECREASE = 1e-13
STEP_TOLERANCE = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class Restriction:
    """theta = offset + basis @ phi: exponents tied, coefficients pinned or held."""

    basis: FloatArray
    """Shape (5, p)."""
    offset: FloatArray
    """Shape (5,)."""

    @classmethod
    def placed(cls, places: Sequence[int], offset: FloatArray | None = None) -> Restriction:
        """Return theta whose (a, b, e, alpha, beta) stand at these places of phi.

        A place of -1 is none: the offset pins that one.
        """
        basis = np.zeros((NUM_THETA, max(places) + 1))
        for row, place in enumerate(places):
            if place >= 0:
                basis[row, place] = 1.0
        return cls(basis=basis, offset=np.zeros(NUM_THETA) if offset is None else offset)


@dataclass(frozen=True)
class SeparableProblem:
    """Points, the space of the residual and the loss of it.

    `is_log` compares log s with log L, otherwise s with L. `delta` is Huber's; `inf` is least
    squares.
    """

    x: FloatArray
    y: FloatArray
    loss: FloatArray
    is_log: bool = True
    delta: float = 1e-3

    @cached_property
    def target(self) -> FloatArray:
        """What the residual is taken against, shape (n,)."""
        return np.asarray(np.log(self.loss)) if self.is_log else self.loss

    @cached_property
    def tables(self) -> tuple[FloatArray, ...]:
        """Columns that turn sums over points into matrix products, shapes (n, k)."""
        x, y, one = self.x, self.y, np.ones_like(self.x)
        return (
            np.stack([one, -x, x * x], axis=1),
            np.stack([one, -y, y * y], axis=1),
            np.stack([one, -x, -y, x * y], axis=1),
        )

    def _terms(self, theta: FloatArray) -> tuple[FloatArray, ...]:
        u = np.exp(theta[:, 0, None] - theta[:, 3, None] * self.x)
        v = np.exp(theta[:, 1, None] - theta[:, 4, None] * self.y)
        epsilon = np.exp(theta[:, 2, None])
        s = u + v
        s += epsilon
        residual = (np.log(s) if self.is_log else s) - self.target
        return u, v, epsilon, s, residual

    def derivatives(
        self, theta: FloatArray, weights: FloatArray, delta: float
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return objective (b,), gradient (b, 5), Hessian and IRLS metric (b, 5, 5)."""
        u, v, epsilon, s, residual = self._terms(theta)
        size = np.abs(residual)
        clipped = np.minimum(size, delta)
        objective = np.einsum("bi,bi->b", weights, clipped * (size - 0.5 * clipped))
        with np.errstate(divide="ignore", invalid="ignore"):
            metric_weight = np.where(size <= delta, 1.0, delta / size)
        metric_weight *= weights
        psi = metric_weight * residual
        quadratic = np.where(size <= delta, weights, 0.0)
        if self.is_log:
            u /= s
            v /= s
            epsilon = epsilon / s
            quadratic -= psi
        else:
            epsilon = np.broadcast_to(epsilon, u.shape)
        curvature = self._sums(psi, u, v, epsilon)
        gradient = np.stack(
            [
                curvature[0][:, 0],
                curvature[1][:, 0],
                curvature[2],
                curvature[0][:, 1],
                curvature[1][:, 1],
            ],
            axis=1,
        )
        hessian = self._outer(quadratic, u, v, epsilon)
        (u_sum, v_sum, e_sum) = curvature
        hessian[:, 0, 0] += u_sum[:, 0]
        hessian[:, 0, 3] += u_sum[:, 1]
        hessian[:, 3, 0] += u_sum[:, 1]
        hessian[:, 3, 3] += u_sum[:, 2]
        hessian[:, 1, 1] += v_sum[:, 0]
        hessian[:, 1, 4] += v_sum[:, 1]
        hessian[:, 4, 1] += v_sum[:, 1]
        hessian[:, 4, 4] += v_sum[:, 2]
        hessian[:, 2, 2] += e_sum
        return objective, gradient, hessian, self._outer(metric_weight, u, v, epsilon)

    def _sums(
        self, psi: FloatArray, u: FloatArray, v: FloatArray, epsilon: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        x_table, y_table, _ = self.tables
        return (psi * u) @ x_table, (psi * v) @ y_table, np.einsum("bi,bi->b", psi, epsilon)

    def _outer(
        self, weight: FloatArray, u: FloatArray, v: FloatArray, epsilon: FloatArray
    ) -> FloatArray:
        """Return sum weight J J^T with J = (u, v, epsilon, -u x, -v y), shape (b, 5, 5)."""
        x_table, y_table, xy_table = self.tables
        weighted_u, weighted_v, weighted_e = weight * u, weight * v, weight * epsilon
        uu, vv = (weighted_u * u) @ x_table, (weighted_v * v) @ y_table
        uv = (weighted_u * v) @ xy_table
        ue = (weighted_u * epsilon) @ x_table[:, :2]
        ve = (weighted_v * epsilon) @ y_table[:, :2]
        ee = np.einsum("bi,bi->b", weighted_e, epsilon)
        out = np.empty((u.shape[0], NUM_THETA, NUM_THETA))
        out[:, 0, 0], out[:, 0, 3], out[:, 3, 3] = uu[:, 0], uu[:, 1], uu[:, 2]
        out[:, 1, 1], out[:, 1, 4], out[:, 4, 4] = vv[:, 0], vv[:, 1], vv[:, 2]
        out[:, 0, 1], out[:, 1, 3], out[:, 0, 4], out[:, 3, 4] = uv.T
        out[:, 0, 2], out[:, 2, 3] = ue.T
        out[:, 1, 2], out[:, 2, 4] = ve.T
        out[:, 2, 2] = ee
        for i, j in (
            (0, 3),
            (1, 4),
            (0, 1),
            (1, 3),
            (0, 4),
            (3, 4),
            (0, 2),
            (2, 3),
            (1, 2),
            (2, 4),
        ):
            out[:, j, i] = out[:, i, j]
        return out


def minimize(
    problem: SeparableProblem,
    theta: FloatArray,
    weights: FloatArray,
    *,
    restriction: Restriction | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Polish every start to the nearest minimum of the objective.

    Args:
        problem: Points and loss.
        theta: Starts, shape (batch, 5), or (batch, p) with a restriction of p free numbers.
        weights: Weight of each point, shape (batch, n).
        restriction: How phi makes theta.

    Returns:
        Parameters of the shape of `theta`, and the objective, shape (batch,).
    """
    phi = theta.copy()
    ladder = [problem.delta * factor for factor in HOMOTOPY] if np.isfinite(problem.delta) else []
    for delta in ladder:
        phi, _ = _descend(problem, phi, weights, delta, COARSE_ITERATIONS, restriction)
    return _descend(problem, phi, weights, problem.delta, FINE_ITERATIONS, restriction)


def _evaluate(
    problem: SeparableProblem,
    phi: FloatArray,
    weights: FloatArray,
    delta: float,
    restriction: Restriction | None,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    if restriction is None:
        return problem.derivatives(phi, weights, delta)
    basis = restriction.basis
    theta = restriction.offset + phi @ basis.T
    objective, gradient, hessian, metric = problem.derivatives(theta, weights, delta)
    return objective, gradient @ basis, basis.T @ hessian @ basis, basis.T @ metric @ basis


def _descend(
    problem: SeparableProblem,
    phi: FloatArray,
    weights: FloatArray,
    delta: float,
    iterations: int,
    restriction: Restriction | None,
) -> tuple[FloatArray, FloatArray]:
    result, objectives = phi.copy(), np.empty(phi.shape[0])
    active = np.arange(phi.shape[0])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        f, g, h, metric = _evaluate(problem, phi, weights, delta, restriction)
        damping = np.full(phi.shape[0], 1e-4)
        for _ in range(iterations):
            step = _newton_step(g, h, metric, damping)
            trial = phi + step
            new_f, new_g, new_h, new_metric = _evaluate(problem, trial, weights, delta, restriction)
            accepted = new_f <= f
            small = (f - new_f <= RELATIVE_DECREASE * f) & (
                np.abs(step).max(axis=1) < STEP_TOLERANCE
            )
            damping = np.where(
                accepted, np.maximum(damping * 0.1, 1e-12), 10.0 * np.maximum(damping, 1e-6)
            )
            if accepted.all():
                phi, f, g, h, metric = trial, new_f, new_g, new_h, new_metric
            else:
                phi[accepted], f[accepted], g[accepted] = (
                    trial[accepted],
                    new_f[accepted],
                    new_g[accepted],
                )
                h[accepted], metric[accepted] = new_h[accepted], new_metric[accepted]
            done = (accepted & small) | (damping > LARGEST_DAMPING)
            if done.any():
                result[active[done]], objectives[active[done]] = phi[done], f[done]
                keep = ~done
                if not keep.any():
                    return result, objectives
                active, weights, damping = active[keep], weights[keep], damping[keep]
                phi, f, g, h, metric = phi[keep], f[keep], g[keep], h[keep], metric[keep]
    result[active], objectives[active] = phi, f
    return result, objectives


def _newton_step(
    gradient: FloatArray, hessian: FloatArray, metric: FloatArray, damping: FloatArray
) -> FloatArray:
    size = gradient.shape[1]
    ridge = 1e-9 * np.trace(metric, axis1=1, axis2=2) / size + 1e-300
    safe = metric + ridge[:, None, None] * np.eye(size)
    step = _solve(hessian + damping[:, None, None] * safe, gradient)
    uphill = ~(np.einsum("bi,bi->b", step, gradient) < 0.0)
    if uphill.any():
        step[uphill] = _solve((1.0 + damping[uphill, None, None]) * safe[uphill], gradient[uphill])
    return step


def _solve(matrix: FloatArray, gradient: FloatArray) -> FloatArray:
    """Return -matrix^-1 gradient; rows whose matrix is singular come back as zeros."""
    try:
        return np.asarray(-np.linalg.solve(matrix, gradient[:, :, None])[:, :, 0], float)
    except np.linalg.LinAlgError:
        singular: BoolArray = ~(np.abs(np.linalg.det(matrix)) > 0.0)
        patched = np.where(singular[:, None, None], np.eye(gradient.shape[1]), matrix)
        step = np.asarray(-np.linalg.solve(patched, gradient[:, :, None])[:, :, 0], float)
        step[singular] = 0.0
        return step
