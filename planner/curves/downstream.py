"""From loss to downstream accuracy.

A small error of accuracy may be two errors that cancel, one of the loss and one of the link: the
link is fitted and scored on true losses, and `predict` carries the interval of the loss through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from planner.curves.arrays import FloatArray
from planner.curves.intervals import DEFAULT_DRAWS, fit_curve
from planner.curves.law import Coefficient, Prediction
from planner.curves.problem import CurveProblem
from planner.errors import ConfigError, FitError, NotFoundError, did_you_mean

__all__ = ["AccuracyPrediction", "DownstreamLink", "fit_downstream_link"]

MIN_POINTS = 6
LARGEST_CORRELATION = -0.3
"""Of accuracy with loss: above it the task is at chance."""
DELTA = 0.01
"""Huber's, in accuracy: the sampling error of a task of 2,500 questions."""


def _sigmoid(theta: FloatArray, loss: FloatArray) -> FloatArray:
    """Return floor + (ceiling - floor) / (1 + exp(k (L - L0))), shape (b, n).

    theta = (floor, log(ceiling - floor), log k, L0).

    Source: the two-step ladder of Bhagia et al. 2024 (arXiv:2412.04403), equation 2.
    """
    slope = np.exp(theta[:, 2:3])
    share = np.exp(-np.logaddexp(0.0, slope * (loss - theta[:, 3:4])))
    return np.asarray(theta[:, :1] + np.exp(theta[:, 1:2]) * share)


def _exponential(theta: FloatArray, loss: FloatArray) -> FloatArray:
    """Return 1 - (epsilon - k exp(-gamma L)), shape (b, n); theta = (epsilon, log k, log gamma).

    Source: Gadre et al. 2024 (arXiv:2403.08540), equation 5.
    """
    return np.asarray(1.0 - theta[:, :1] + np.exp(theta[:, 1:2] - np.exp(theta[:, 2:3]) * loss))


def _sigmoid_starts(loss: FloatArray, accuracy: FloatArray) -> FloatArray:
    low, high = accuracy.min(), accuracy.max()
    return np.array(
        [[low, np.log(top - low), np.log(k), middle]
         for top in (high + 0.05, 0.5 + 0.5 * high)
         for k in (1.0, 4.0)
         for middle in (loss.min(), np.median(loss))]
    )  # fmt: skip


def _exponential_starts(loss: FloatArray, accuracy: FloatArray) -> FloatArray:
    worst = 1.0 - accuracy.min()
    rise = max(np.ptp(accuracy), 0.01)
    return np.array(
        [[worst, np.log(rise) + gamma * loss.min(), np.log(gamma)] for gamma in (0.3, 1.0, 2.5)]
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    model: Callable[[FloatArray, FloatArray], FloatArray]
    starts: Callable[[FloatArray, FloatArray], FloatArray]
    names: tuple[str, ...]
    natural: Callable[[FloatArray], FloatArray]


def _sigmoid_coefficients(theta: FloatArray) -> FloatArray:
    floor, rise, slope, middle = theta.T
    return np.stack([floor, floor + np.exp(rise), np.exp(slope), middle], axis=1)


def _exponential_coefficients(theta: FloatArray) -> FloatArray:
    return np.column_stack([theta[:, 0], np.exp(theta[:, 1:])])


_KINDS = {
    "sigmoid": _Kind(
        _sigmoid,
        _sigmoid_starts,
        ("floor", "ceiling", "slope", "middle_loss"),
        _sigmoid_coefficients,
    ),
    "exponential": _Kind(
        _exponential, _exponential_starts, ("epsilon", "k", "gamma"), _exponential_coefficients
    ),
}


LARGEST_CEILING = 1.0
"""A ceiling that may lie above it is not identified, and said to be unbounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyPrediction:
    """Accuracy with its interval; arrays of one shape."""

    accuracy: FloatArray
    accuracy_lower: FloatArray
    accuracy_upper: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DownstreamLink:
    """Accuracy of one task as a function of loss."""

    kind: str
    theta: FloatArray
    noise: float
    """Standard deviation of accuracy around the link, on true losses."""
    num_points: int
    loss_range: tuple[float, float]
    coefficients: tuple[Coefficient, ...]
    draws: FloatArray
    """Bootstrap optima of theta, shape (s, p)."""

    def accuracy(self, loss: ArrayLike) -> FloatArray:
        """Return accuracy at a loss, kept in 0 to 1."""
        values = np.asarray(loss, dtype=np.float64)
        flat = _KINDS[self.kind].model(self.theta[None], values.ravel())[0]
        return np.asarray(np.clip(flat, 0.0, 1.0)).reshape(values.shape)

    def predict(self, loss: Prediction) -> AccuracyPrediction:
        """Return accuracy at predicted losses.

        The interval holds that of the loss, the spread of the link and the noise.
        """
        center = self.accuracy(loss.loss)
        best, worst = self.accuracy(loss.loss_lower), self.accuracy(loss.loss_upper)
        flat = _KINDS[self.kind].model(self.draws, np.ravel(loss.loss))
        spread = flat.std(axis=0).reshape(center.shape) if len(flat) else 0.0
        noise = float(ndtri(0.5 + 0.5 * loss.level)) * np.hypot(self.noise, spread)
        return AccuracyPrediction(
            accuracy=center,
            accuracy_lower=np.clip(center - np.hypot(center - worst, noise), 0.0, 1.0),
            accuracy_upper=np.clip(center + np.hypot(best - center, noise), 0.0, 1.0),
        )


def fit_downstream_link(
    loss: ArrayLike,
    accuracy: ArrayLike,
    *,
    kind: str = "sigmoid",
    num_bootstraps: int = DEFAULT_DRAWS,
    level: float = 0.9,
    seed: int = 0,
) -> DownstreamLink:
    """Fit accuracy against measured loss.

    Args:
        loss: Measured, shape (n,): not a law's prediction.
        accuracy: In 0 to 1, shape (n,).
        kind: `sigmoid` or `exponential`.
        num_bootstraps: Resamplings behind the intervals; 0 makes none.
        level: Of the intervals.
        seed: Of the resampling.

    Raises:
        ConfigError: Shapes differ, accuracy is not in 0 to 1, or the level is not in (0, 1).
        NotFoundError: There is no such link.
        FitError: Fewer than six points, or accuracy does not rise as loss falls: the task is
            still at chance.
    """
    if kind not in _KINDS:
        raise NotFoundError(f"no downstream link {kind!r}. {did_you_mean(kind, _KINDS)}")
    x, y = (np.asarray(v, dtype=np.float64).ravel() for v in (loss, accuracy))
    if x.shape != y.shape or not (np.isfinite(x) & (y >= 0) & (y <= 1)).all():
        raise ConfigError("loss must be finite and accuracy lie in 0 to 1, as lists of one length.")
    if x.size < MIN_POINTS:
        raise FitError(f"a downstream link needs at least {MIN_POINTS} points: got {x.size}.")
    varies = np.ptp(x) > 0 and np.ptp(y) > 0
    if not (varies and np.corrcoef(x, y)[0, 1] < LARGEST_CORRELATION):
        raise FitError(
            "accuracy does not rise as loss falls: the task is at chance for these models.",
            hint="Evaluate larger models, or a graded metric such as bits per byte of the answer.",
        )
    form = _KINDS[kind]
    problem = CurveProblem(
        names=form.names,
        model=lambda theta: form.model(theta, x),
        target=y,
        natural=form.natural,
        delta=DELTA,
        ranges={"ceiling": (-np.inf, LARGEST_CEILING)},
    )
    fitted = fit_curve(
        problem, form.starts(x, y), num_bootstraps=num_bootstraps, level=level, seed=seed
    )
    return DownstreamLink(
        kind=kind,
        theta=fitted.theta,
        noise=float(np.sqrt((fitted.residual**2).sum() / max(x.size - fitted.theta.size, 1))),
        num_points=int(x.size),
        loss_range=(float(x.min()), float(x.max())),
        coefficients=fitted.coefficients,
        draws=fitted.draws,
    )
