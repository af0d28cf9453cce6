"""Robust least squares for any form, many starts and many weightings at once.

The forms with a Newton of their own (`newton`, `anchored`) are faster; this serves all others.
Levenberg-Marquardt, Huber's loss reached from a wide delta, the Jacobian by differences in coordinates
of order one. The metric is the curvature of Huber's loss (rows within delta), damped by
that of iteratively reweighted squares: these alone creep along a curved valley and stop short of
its end, so that draws of a bootstrap lie too close together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.curves.arrays import FloatArray

__all__ = [
    "FINE_ITERATIONS",
    "MEDIAN_OF_NORMAL",
    "Model",
    "huber_sum",
    "jacobian",
    "minimize_robust",
    "one_sided",
    "robust_deviation",
]

Model = Callable[[FloatArray], FloatArray]
"""theta (b, p) -> prediction (b, n), in the space of the residual."""

MEDIAN_OF_NORMAL = 0.6745
"""Of the absolute value of a standard normal."""

DIFFERENCE = 1e-6
LARGEST_STEP = 1.0
HOMOTOPY = (30.0, 10.0, 3.0, 1.0)
COARSE_ITERATIONS = 8
FINE_ITERATIONS = 200
LARGEST_DAMPING = 1e8
SMALLEST_GAIN = 1e-10
FIRST_DAMPING = 0.01
DAMPING_FACTOR = 3.0


def minimize_robust(
    model: Model,
    target: FloatArray,
    theta: FloatArray,
    weights: FloatArray,
    *,
    delta: float | FloatArray,
    slopes: Model | None = None,
    is_wide: bool = False,
    tolerance: float = SMALLEST_GAIN,
    iterations: int = FINE_ITERATIONS,
) -> tuple[FloatArray, FloatArray]:
    """Minimise sum_i w_i Huber(model(theta)_i - target_i) from every start.

    Args:
        model: The prediction; coordinates of theta should be of order one.
        target: What is predicted, shape (n,).
        theta: Starts, shape (b, p).
        weights: Shape (b, n).
        delta: Huber's, one or shape (n,); `inf` is least squares.
        slopes: theta (b, p) -> d model / d theta, shape (b, n, p); absent means
            differences.
        is_wide: The starts are optima of a wider delta: Huber's is not narrowed once more.
        tolerance: Relative decrease of the objective in one step at which a start has arrived.
        iterations: Steps after which a start is given up where it is.

    Returns:
        theta, shape (b, p), and the objective, shape (b,), infinite where the model is not finite.
    """
    slopes_of = slopes or (lambda at: one_sided(model, at))
    factors = HOMOTOPY if np.isfinite(delta).any() and not is_wide else HOMOTOPY[-1:]
    value = np.full(theta.shape[0], np.inf)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for factor in factors:
            last = factor == factors[-1]
            theta, value = _descend(
                model, target, theta, weights, delta * factor,
                iterations if last else COARSE_ITERATIONS, slopes_of, tolerance,
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
    value = huber_sum(prediction - target, weights, delta)
    damping = np.full(theta.shape[0], FIRST_DAMPING)
    for _ in range(iterations):
        step = _step(slopes_of(theta), prediction - target, weights, delta, damping)
        trial = theta + step
        trial_prediction = model(trial)
        trial_value = huber_sum(trial_prediction - target, weights, delta)
        better = trial_value < value
        gain = np.where(better, (value - trial_value) / np.maximum(value, 1e-300), 0.0)
        theta[better], value[better] = trial[better], trial_value[better]
        prediction[better] = trial_prediction[better]
        change = np.where(better, 1 / DAMPING_FACTOR, DAMPING_FACTOR)
        damping = np.maximum(change * damping, 1e-9)
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


def huber_sum(residual: FloatArray, weights: FloatArray, delta: float | FloatArray) -> FloatArray:
    """Return the weighted sum of Huber's losses, shape (b,); infinite where it is not finite."""
    size = np.abs(residual)
    clipped = np.minimum(size, delta)
    value = np.einsum("bi,bi->b", weights, clipped * (size - 0.5 * clipped))
    return np.where(np.isfinite(value), value, np.inf)


def jacobian(model: Model, theta: FloatArray) -> FloatArray:
    """Return d model / d theta by central differences, shape (b, n, p)."""
    num, size = theta.shape
    offsets = DIFFERENCE * np.eye(size)
    both = np.concatenate([theta[:, None] + offsets, theta[:, None] - offsets], axis=1)
    values = model(both.reshape(-1, size)).reshape(num, 2 * size, -1)
    slopes = (values[:, :size] - values[:, size:]) / (2 * DIFFERENCE)
    slopes[~np.isfinite(slopes)] = 0.0
    return slopes.transpose(0, 2, 1)


def one_sided(model: Model, theta: FloatArray) -> FloatArray:
    """Return d model / d theta to 1e-6: enough for a step, at half the cost, shape (b, n, p)."""
    num, size = theta.shape
    places = theta[:, None] + np.concatenate([np.zeros((1, size)), DIFFERENCE * np.eye(size)])
    values = model(places.reshape(-1, size)).reshape(num, size + 1, -1)
    slopes = (values[:, 1:] - values[:, :1]) / DIFFERENCE
    slopes[~np.isfinite(slopes)] = 0.0
    return np.asarray(slopes.transpose(0, 2, 1))


def _step(
    jacobian: FloatArray,
    residual: FloatArray,
    weights: FloatArray,
    delta: float | FloatArray,
    damping: FloatArray,
) -> FloatArray:
    usable = np.isfinite(residual)
    size = np.where(usable, np.abs(residual), np.inf)
    strength = weights * np.where(usable, np.minimum(1.0, delta / np.maximum(size, 1e-300)), 0.0)
    share = np.minimum(damping, 1.0)[:, None]
    within = np.where(usable & (size <= delta), weights, share * strength)
    rows = jacobian.transpose(0, 2, 1)
    metric = (rows * within[:, None]) @ jacobian
    gradient = rows @ (strength * np.where(usable, residual, 0.0))[:, :, None]
    diagonal = np.einsum("bpp->bp", metric)
    scale = np.einsum("bnp,bn->bp", jacobian * jacobian, strength)
    diagonal += damping[:, None] * scale + 1e-12 * scale.max(axis=1, keepdims=True) + 1e-300
    step = -np.linalg.solve(metric, gradient)[:, :, 0]
    return np.asarray(np.clip(step, -LARGEST_STEP, LARGEST_STEP))


def robust_deviation(residual: FloatArray, num_coefficients: int = 0) -> float:
    """Return the standard deviation of a normal with this median absolute residual.

    Scaled by sqrt(n / (n - p)) for the p numbers that were fitted.
    """
    freedom = max(residual.size - num_coefficients, 1)
    median = float(np.median(np.abs(residual)))
    return median / MEDIAN_OF_NORMAL * float(np.sqrt(residual.size / freedom))
