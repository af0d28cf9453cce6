"""Robust least squares for any form, many starts and many weightings at once.

The forms with a Newton of their own (`newton`, `anchored`) are faster; this serves all others.
Levenberg-Marquardt on iteratively reweighted squares, Huber's loss reached from a wide delta, the
Jacobian by central differences in coordinates of order one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.curves.arrays import FloatArray

__all__ = ["Model", "best_per_weighting", "jacobian", "minimize_robust"]

Model = Callable[[FloatArray], FloatArray]
"""theta (b, p) -> prediction (b, n), in the space of the residual."""

DIFFERENCE = 1e-6
LARGEST_STEP = 1.0
HOMOTOPY = (30.0, 10.0, 3.0, 1.0)
COARSE_ITERATIONS = 8
FINE_ITERATIONS = 60
LARGEST_DAMPING = 1e8
SMALLEST_GAIN = 1e-10


def minimize_robust(
    model: Model,
    target: FloatArray,
    theta: FloatArray,
    weights: FloatArray,
    *,
    delta: float | FloatArray,
    num_fixed: int = 0,
    slopes: Model | None = None,
    is_wide: bool = False,
    tolerance: float = SMALLEST_GAIN,
) -> tuple[FloatArray, FloatArray]:
    """Minimise sum_i w_i Huber(model(theta)_i - target_i) from every start.

    Args:
        model: The prediction; coordinates of theta should be of order one.
        target: What is predicted, shape (n,).
        theta: Starts, shape (b, p).
        weights: Shape (b, n).
        delta: Huber's, one or shape (n,); `inf` is least squares.
        num_fixed: So many leading coordinates of theta stay as they are, for profiles.
        slopes: theta (b, p) -> d model / d theta, shape (b, n, p); absent means central
            differences.
        is_wide: The starts are optima of a wider delta: Huber's is not narrowed once more.
        tolerance: Relative decrease of the objective in one step at which a start has arrived.

    Returns:
        theta, shape (b, p), and the objective, shape (b,), infinite where the model is not finite.
    """
    slopes_of = slopes or (lambda at: jacobian(model, at, num_fixed))
    factors = HOMOTOPY if np.isfinite(delta).any() and not is_wide else HOMOTOPY[-1:]
    value = np.full(theta.shape[0], np.inf)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for factor in factors:
            last = factor == factors[-1]
            theta, value = _descend(
                model, target, theta, weights, delta * factor,
                FINE_ITERATIONS if last else COARSE_ITERATIONS, slopes_of, tolerance,
            )  # fmt: skip
    return theta, value


def _descend(
    model: Model,
    target: FloatArray,
    theta: FloatArray,
    weights: FloatArray,
    delta: float | FloatArray,
    iterations: int,
    slopes_of: Model,
    tolerance: float,
) -> tuple[FloatArray, FloatArray]:
    result, values = theta.copy(), np.empty(theta.shape[0])
    active = np.arange(theta.shape[0])
    theta = theta.copy()
    prediction = model(theta)
    value = _objective(prediction - target, weights, delta)
    damping = np.full(theta.shape[0], 1e-3)
    for _ in range(iterations):
        residual = prediction - target
        strength = weights * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
        step = _step(slopes_of(theta), residual, strength, damping)
        trial = theta + step
        trial_prediction = model(trial)
        trial_value = _objective(trial_prediction - target, weights, delta)
        better = trial_value < value
        gain = np.where(better, (value - trial_value) / np.maximum(value, 1e-300), 0.0)
        theta[better], value[better] = trial[better], trial_value[better]
        prediction[better] = trial_prediction[better]
        damping = np.where(better, np.maximum(0.2 * damping, 1e-9), 5.0 * damping)
        done = (better & (gain <= tolerance)) | (damping >= LARGEST_DAMPING)
        if done.any():
            result[active[done]], values[active[done]] = theta[done], value[done]
            keep = ~done
            if not keep.any():
                return result, values
            active, weights, theta = active[keep], weights[keep], theta[keep]
            value, prediction, damping = value[keep], prediction[keep], damping[keep]
    result[active], values[active] = theta, value
    return result, values


def _objective(residual: FloatArray, weights: FloatArray, delta: float | FloatArray) -> FloatArray:
    size = np.abs(residual)
    clipped = np.minimum(size, delta)
    value = np.einsum("bi,bi->b", weights, clipped * (size - 0.5 * clipped))
    return np.where(np.isfinite(value), value, np.inf)


def jacobian(model: Model, theta: FloatArray, num_fixed: int = 0) -> FloatArray:
    """Return d model / d theta by central differences, shape (b, n, p)."""
    num, size = theta.shape
    offsets = DIFFERENCE * np.eye(size)
    both = np.concatenate([theta[:, None] + offsets, theta[:, None] - offsets], axis=1)
    values = model(both.reshape(-1, size)).reshape(num, 2 * size, -1)
    slopes = (values[:, :size] - values[:, size:]) / (2 * DIFFERENCE)
    slopes[:, :num_fixed] = 0.0
    slopes[~np.isfinite(slopes)] = 0.0
    return slopes.transpose(0, 2, 1)


def _step(
    jacobian: FloatArray, residual: FloatArray, strength: FloatArray, damping: FloatArray
) -> FloatArray:
    usable = np.isfinite(residual)
    scaled = jacobian * np.where(usable, strength, 0.0)[:, :, None]
    sums = scaled.transpose(0, 2, 1)
    metric = sums @ jacobian
    gradient = sums @ np.where(usable, residual, 0.0)[:, :, None]
    diagonal = np.einsum("bpp->bp", metric)
    diagonal += damping[:, None] * diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
    step = -np.linalg.solve(metric, gradient)[:, :, 0]
    return np.asarray(np.clip(step, -LARGEST_STEP, LARGEST_STEP))


def best_per_weighting(
    theta: FloatArray, value: FloatArray, num_weightings: int
) -> tuple[FloatArray, FloatArray]:
    """Return the best of the starts of each weighting; starts of one weighting are adjacent."""
    per = theta.reshape(num_weightings, -1, theta.shape[1])
    values = value.reshape(num_weightings, -1)
    chosen = values.argmin(axis=1)
    rows = np.arange(num_weightings)
    return per[rows, chosen], values[rows, chosen]
