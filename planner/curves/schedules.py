"""The loss curve of a training under a learning-rate schedule.

The multi-power law: a power law in the summed rate, less what every lowering of the rate has
brought by then. A law fitted on two or three schedules predicts others of the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.curves.arrays import FloatArray
from planner.curves.robust import minimize_robust
from planner.errors import ConfigError, FitError

__all__ = ["LossTrace", "ScheduleLaw", "fit_schedule_law"]

SEGMENTS = 160
"""A schedule is cut into so many pieces of equal steps; lowerings act at their ends."""

FIT_POINTS = 60
"""Losses per trace that are fitted: a curve is smooth between them."""

DELTA = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossTrace:
    """One training: its rate at every step, and losses at some."""

    learning_rate: FloatArray
    """Shape (num_steps,); the rate used at each step, warm-up included."""
    step: FloatArray
    """Steps at which the loss was measured, from 1, shape (n,)."""
    loss: FloatArray


@dataclass(frozen=True, slots=True)
class _Segments:
    """Sums of a schedule at segment ends, in units of the peak rate times a thousand steps."""

    summed: FloatArray
    lowered: FloatArray
    rate: FloatArray
    step: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScheduleLaw:
    """L(t) = L0 + A S1^-alpha - B sum_k (eta_(k-1) - eta_k) (1 - (C eta_k^-gamma S_k + 1)^-beta).

    Rates are relative to `peak_rate`, sums in thousands of steps at that rate.
    theta = logs of (L0, A, alpha, B, C, beta, gamma).
    """

    theta: FloatArray
    peak_rate: float
    noise: float
    """Standard deviation of log loss around the fit."""
    num_points: int

    def predict(self, learning_rate: FloatArray, step: FloatArray) -> FloatArray:
        """Return the loss at some steps of a training with this rate at every step."""
        pieces = _cut(np.asarray(learning_rate, dtype=np.float64), self.peak_rate)
        losses = _curve(self.theta[None], pieces, np.asarray(step, dtype=np.float64))
        return np.asarray(losses[0])


def _cut(rate: FloatArray, peak: float) -> _Segments:
    edges = np.unique(np.linspace(0, rate.size, SEGMENTS + 1).round().astype(np.int64))
    total = np.concatenate([[0.0], np.cumsum(rate)]) / (1000.0 * peak)
    ends = rate[edges[1:] - 1] / peak
    before = np.concatenate([[ends[0]], ends[:-1]])
    return _Segments(
        total[edges[1:]], before - ends, np.maximum(ends, 1e-6), edges[1:].astype(float)
    )


def _curve(theta: FloatArray, s: _Segments, step: FloatArray) -> FloatArray:
    """Return loss, shape (b, n).

    Source: Luo et al. 2025 (arXiv:2503.12811), equations 3 and 4. Warm-up is part of the sum, and
    its raising of the rate counts as no lowering.
    """
    floor, a, alpha, b, c, beta, gamma = (np.exp(theta[:, i, None]) for i in range(7))
    summed = np.interp(step, s.step, s.summed)
    lowered = np.maximum(s.lowered, 0.0)
    since = np.maximum(
        summed[:, None] - s.summed[None, :] + s.rate * np.diff(s.step, prepend=0) / 1e3, 0.0
    )
    since = np.where(step[:, None] >= s.step[None, :] - 0.5, since, 0.0)
    used = lowered > 0
    gain = np.zeros((theta.shape[0], step.size))
    for row in range(theta.shape[0]):
        reach = c[row] * s.rate[used] ** -gamma[row] * since[:, used]
        gain[row] = (lowered[used] * -np.expm1(-beta[row] * np.log1p(reach))).sum(axis=1)
    return np.asarray(floor + a * summed[None, :] ** -alpha - b * gain)


def fit_schedule_law(traces: Sequence[LossTrace]) -> ScheduleLaw:
    """Fit the multi-power law to the traces of one model, at least two schedules.

    Raises:
        ConfigError: A rate or a loss is not positive and finite, or a step lies outside.
        FitError: No trace lowers its rate, so its effect is not identified.
    """
    if not traces:
        raise FitError("a schedule law needs at least one trace: got none.")
    for trace in traces:
        sound = (np.isfinite(trace.loss) & (trace.loss > 0)).all() and (
            trace.learning_rate >= 0
        ).all()
        inside = (trace.step >= 1).all() and (trace.step <= trace.learning_rate.size).all()
        if not (sound and inside and trace.loss.shape == trace.step.shape):
            raise ConfigError(
                "each trace needs positive losses at steps from 1 to the length of its schedule."
            )
    peak = float(max(trace.learning_rate.max() for trace in traces))
    pieces = [_cut(trace.learning_rate, peak) for trace in traces]
    if not any((p.lowered > 0).any() for p in pieces):
        raise FitError(
            "no trace lowers its rate: what a decay brings is not identified.",
            hint="Add a training with a cosine or a cooldown.",
        )
    thinned = [_thin(trace) for trace in traces]
    target = np.log(np.concatenate([loss for _, loss in thinned]))

    def model(theta: FloatArray) -> FloatArray:
        parts = [_curve(theta, p, step) for p, (step, _) in zip(pieces, thinned, strict=True)]
        return np.log(np.maximum(np.concatenate(parts, axis=1), 1e-3))

    least = float(np.exp(target.min()))
    starts = np.log(
        [[0.95 * least, 0.2 * least, 0.5, 0.1 * least, c, 0.6, 0.6] for c in (1.0, 10.0)]
    )
    theta, value = minimize_robust(
        model, target, starts, np.ones((len(starts), target.size)), delta=DELTA
    )
    best = int(value.argmin())
    residual = model(theta[[best]])[0] - target
    return ScheduleLaw(
        theta=theta[best],
        peak_rate=peak,
        noise=float(np.median(np.abs(residual)) / 0.6745),
        num_points=int(target.size),
    )


def _thin(trace: LossTrace) -> tuple[FloatArray, FloatArray]:
    rows = np.unique(np.linspace(0, trace.step.size - 1, FIT_POINTS).round().astype(np.int64))
    return trace.step[rows], trace.loss[rows]
