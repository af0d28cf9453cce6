"""The loss curve of a training under a learning-rate schedule.

The multi-power law: a power law in the summed rate, less what every lowering of the rate has
brought by then. A law fitted on two or three schedules predicts others of the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.curves.arrays import FloatArray
from planner.curves.intervals import DEFAULT_DRAWS, fit_curve
from planner.curves.law import Coefficient
from planner.curves.problem import CurveProblem
from planner.curves.robust import robust_deviation
from planner.errors import ConfigError, FitError

__all__ = ["LossTrace", "ScheduleLaw", "fit_schedule_law"]

SEGMENTS = 160
"""A schedule is cut into so many pieces of equal steps; the lowerings of one act as their mean."""

FIT_POINTS = 60
"""Losses per trace that are fitted: a curve is smooth between them."""

BLOCK = 4
"""Neighbouring losses of a trace that are resampled together."""

DELTA = 1e-3

LEAST_LOSS = 1e-3
"""The law is kept above it while the fit searches."""


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
    """A schedule cut into pieces, in units of the peak rate times a thousand steps."""

    summed: FloatArray
    """Of the rate, up to the end of each piece, shape (k,)."""
    step: FloatArray
    """At the end of each piece, shape (k,)."""
    lowered: FloatArray
    """What the rate falls by within each piece that lowers it, shape (m,)."""
    lowered_at: FloatArray
    """The summed rate before those falls, their mean by size, shape (m,)."""
    log_rate: FloatArray
    """Log of the rate after those falls, their mean by size, shape (m,)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScheduleLaw:
    """L(t) = L0 + A S1^-alpha - B sum_k (eta_(k-1) - eta_k) (1 - (C eta_k^-gamma S_k + 1)^-beta).

    Rates are relative to `peak_rate`, sums in thousands of steps at that rate.
    theta = logs of (L0, A, alpha, B, C, beta, gamma).
    """

    theta: FloatArray
    peak_rate: float
    noise: float
    """Robust standard deviation of log loss around the fit."""
    num_points: int
    coefficients: tuple[Coefficient, ...]
    """L0, A, alpha, B, C, beta and gamma, with intervals."""

    def predict(self, learning_rate: FloatArray, step: FloatArray) -> FloatArray:
        """Return the loss at some steps of a training with this rate at every step."""
        pieces = _cut(np.asarray(learning_rate, dtype=np.float64), self.peak_rate)
        losses, _ = _curve(self.theta[None], pieces, np.asarray(step, dtype=np.float64))
        return np.asarray(losses[0])


def _cut(rate: FloatArray, peak: float) -> _Segments:
    edges = np.unique(np.linspace(0, rate.size, SEGMENTS + 1).round().astype(np.int64))
    relative = rate / peak
    total = np.concatenate([[0.0], np.cumsum(relative)]) / 1000.0
    fall = np.maximum(-np.diff(relative, prepend=relative[0]), 0.0)
    lowered = np.add.reduceat(fall, edges[:-1])
    used = lowered > 0

    def mean(values: FloatArray) -> FloatArray:
        return np.asarray(np.add.reduceat(fall * values, edges[:-1])[used] / lowered[used])

    return _Segments(
        summed=total[edges[1:]],
        step=edges[1:].astype(float),
        lowered=lowered[used],
        lowered_at=mean(total[:-1]),
        log_rate=mean(np.log(np.maximum(relative, 1e-6))),
    )


def _curve(
    theta: FloatArray, s: _Segments, step: FloatArray, *, with_slopes: bool = False
) -> tuple[FloatArray, FloatArray | None]:
    """Return loss, shape (b, n), and its slopes along theta, shape (b, n, 7), if wanted.

    Source: Luo et al. 2025 (arXiv:2503.12811), equations 3 and 4. Warm-up is part of the sum, and
    its raising of the rate counts as no lowering.
    """
    floor, a, alpha, b, c, beta, gamma = (np.exp(theta[:, i, None]) for i in range(7))
    summed = np.interp(step, s.step, s.summed)
    since = np.maximum(summed[:, None] - s.lowered_at[None, :], 0.0)
    gain = np.zeros((len(theta), step.size))
    gain_slopes = np.zeros((len(theta), step.size, 3))
    for row in range(len(theta)):
        reach = c[row] * np.exp(-gamma[row] * s.log_rate) * since
        log_reach = np.log1p(reach)
        left = np.exp(-beta[row] * log_reach)
        gain[row] = (1.0 - left) @ s.lowered
        if with_slopes:
            growth = beta[row] * left * reach / (1.0 + reach)
            gain_slopes[row, :, 0] = growth @ s.lowered
            gain_slopes[row, :, 1] = beta[row] * ((left * log_reach) @ s.lowered)
            gain_slopes[row, :, 2] = -gamma[row] * (growth @ (s.lowered * s.log_rate))
    power = a * summed[None, :] ** -alpha
    loss = np.asarray(floor + power - b * gain)
    if not with_slopes:
        return loss, None
    first = [np.broadcast_to(floor, loss.shape), power, -alpha * np.log(summed) * power, -b * gain]
    return loss, np.concatenate([np.stack(first, axis=2), -b[:, :, None] * gain_slopes], axis=2)


def fit_schedule_law(
    traces: Sequence[LossTrace],
    *,
    num_bootstraps: int = DEFAULT_DRAWS,
    level: float = 0.9,
    seed: int = 0,
) -> ScheduleLaw:
    """Fit the multi-power law to the traces of one model, best of two schedules or more.

    Losses of neighbouring steps err together and are resampled together, a few at a time.

    Args:
        traces: Trainings of one model.
        num_bootstraps: Resamplings behind the intervals of the coefficients; 0 makes none.
        level: Of the intervals.
        seed: Of the resampling.

    Raises:
        ConfigError: A rate is negative, a loss not positive, either is not finite, a trace has no
            loss or no rate above zero, or a step lies outside.
        FitError: No trace lowers its rate, so its effect is not identified.
    """
    if not traces:
        raise FitError("a schedule law needs at least one trace: got none.")
    for trace in traces:
        rate, loss, step = trace.learning_rate, trace.loss, trace.step
        sound = (np.isfinite(loss) & (loss > 0)).all() and (np.isfinite(rate) & (rate >= 0)).all()
        inside = (step >= 1).all() and (step <= rate.size).all()
        if not (sound and inside and loss.size and rate.any() and loss.shape == step.shape):
            raise ConfigError(
                "each trace needs finite rates, some above zero, and positive losses at steps from 1 "
                "to the length of its schedule."
            )
    peak = float(max(trace.learning_rate.max() for trace in traces))
    pieces = [_cut(trace.learning_rate, peak) for trace in traces]
    if not any(p.lowered.size for p in pieces):
        raise FitError(
            "no trace lowers its rate: what a decay brings is not identified.",
            hint="Add a training with a cosine or a cooldown.",
        )
    thinned = [_thin(trace) for trace in traces]
    target = np.log(np.concatenate([loss for _, loss in thinned]))
    least = float(np.exp(target.min()))
    starts = np.log(
        [[0.95 * least, 0.2 * least, 0.5, 0.1 * least, c, 0.6, 0.6] for c in (1.0, 10.0)]
    )
    fitted = fit_curve(
        _problem(pieces, [step for step, _ in thinned], target),
        starts,
        num_bootstraps=num_bootstraps,
        level=level,
        seed=seed,
    )
    return ScheduleLaw(
        theta=fitted.theta,
        peak_rate=peak,
        noise=robust_deviation(fitted.residual),
        num_points=int(target.size),
        coefficients=fitted.coefficients,
    )


def _problem(
    pieces: Sequence[_Segments], steps: Sequence[FloatArray], target: FloatArray
) -> CurveProblem:
    def model(theta: FloatArray) -> FloatArray:
        parts = [_curve(theta, p, step)[0] for p, step in zip(pieces, steps, strict=True)]
        return np.asarray(np.log(np.maximum(np.concatenate(parts, axis=1), LEAST_LOSS)))

    def slopes(theta: FloatArray) -> FloatArray:
        parts = []
        for piece, step in zip(pieces, steps, strict=True):
            loss, along = _curve(theta, piece, step, with_slopes=True)
            parts.append(along / np.maximum(loss, LEAST_LOSS)[:, :, None])
        return np.asarray(np.nan_to_num(np.concatenate(parts, axis=1)))

    blocks = [np.arange(step.size) // BLOCK + 1000 * i for i, step in enumerate(steps)]
    return CurveProblem(
        names=("L0", "A", "alpha", "B", "C", "beta", "gamma"),
        model=model,
        target=target,
        natural=lambda theta: np.asarray(np.exp(theta)),
        delta=DELTA,
        ranges={"L0": (1e-3 * float(np.exp(target.min())), np.inf)},
        group=np.concatenate(blocks),
        slopes=slopes,
    )


def _thin(trace: LossTrace) -> tuple[FloatArray, FloatArray]:
    rows = np.unique(np.linspace(0, trace.step.size - 1, FIT_POINTS).round().astype(np.int64))
    return trace.step[rows], trace.loss[rows]
