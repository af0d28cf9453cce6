"""Best learning rate and batch as power laws of size and tokens, from swept grids.

Around its best setting log loss is a bowl in (log rate, log batch). If the bowl has one shape and
its bottom moves as power laws of (N, D), then log loss is linear in the features below, and one
robust regression over all grids reads off the laws: no grid needs to be full, and no single lucky
cell decides, as it does when the least cell of each grid is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.curves.arrays import FloatArray, IntArray
from planner.curves.checks import require_level
from planner.curves.intervals import (
    bootstrap_coefficients,
    expanded_tail,
    resampling_counts,
)
from planner.curves.law import Coefficient
from planner.curves.robust import robust_deviation
from planner.errors import ConfigError, FitError

__all__ = ["TunedSetting", "TuningGrid", "TuningLaw", "fit_tuning_law"]

NEAR_BEST = 0.03
"""Rows within this fraction of the least loss of their grid: further out the bowl is none, and
too large a rate diverges."""

BOWL_EXCESS = 0.004
"""Rows this far above the best of their grid count half: the bowl is steeper towards large rates
than towards small ones, and a parabola holds near its bottom only."""

MIN_ROWS_PER_GRID = 4
HUBER = 1e-3
"""In log loss: the noise of one training, 0.05 to 0.2 percent."""

ITERATIONS = 30
DRAW_ITERATIONS = 6
"""Of a resampling, which starts at the fit itself."""

NUM_DRAWS = 200

NAMES = ("rate", "rate_N", "rate_D", "batch", "batch_N", "batch_D")
"""Rate and batch at the centre of the sweeps, and their exponents."""

RATE_EXPONENTS = {"num_params": (-0.5, 0.2), "num_tokens": (0.2, 0.1)}
BATCH_EXPONENTS = {"num_params": (0.0, 0.1), "num_tokens": (0.47, 0.15)}
"""(mean, deviation) of the exponents beforehand. The batch: Zhang et al. 2024 (arXiv:2410.21676)
find the critical batch to grow as D^0.47 and hardly with N. The rate: the sum of its exponents
is -0.25 in DeepSeek LLM (C^-0.125 at fixed D/N) and -0.41 in Step Law (arXiv:2503.04715)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TuningGrid:
    """Trainings that differ in rate and batch, at several sizes and token counts; shape (n,)."""

    num_params: FloatArray
    num_tokens: FloatArray
    learning_rate: FloatArray
    tokens_per_step: FloatArray
    loss: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedSetting:
    """What to set, with the factor within which it may be wrong."""

    learning_rate: FloatArray
    tokens_per_step: FloatArray
    learning_rate_factor: float
    """One standard deviation of log rate, as a factor; the largest over the points."""
    tokens_per_step_factor: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TuningLaw:
    """log rate* and log batch* = coefficients @ (1, log N - center, log D - center)."""

    coefficients: FloatArray
    """Rows: rate, batch. Columns: constant, exponent of N, exponent of D."""
    center: tuple[float, float]
    curvature: FloatArray
    """Of log loss in (log rate, log batch), shape (2, 2), positive definite."""
    num_rows: int
    num_grids: int
    dropped: dict[str, int]
    noise: float
    intervals: tuple[Coefficient, ...]
    """Rate and batch at the centre and their exponents, as `NAMES`."""
    draws: FloatArray
    """Bootstrap draws of `coefficients`, shape (s, 2, 3)."""

    def predict(self, num_params: ArrayLike, num_tokens: ArrayLike) -> TunedSetting:
        """Return the best rate and tokens per step; inputs broadcast."""
        n, d = np.broadcast_arrays(
            np.asarray(num_params, dtype=np.float64), np.asarray(num_tokens, dtype=np.float64)
        )
        z = np.stack([np.ones_like(n), np.log(n) - self.center[0], np.log(d) - self.center[1]])
        rate, batch = np.exp(np.tensordot(self.coefficients, z, axes=1))
        spread = np.tensordot(self.draws, z, axes=1).std(axis=0)
        factors = np.exp(spread.reshape(2, -1).max(axis=1))
        return TunedSetting(
            learning_rate=rate,
            tokens_per_step=batch,
            learning_rate_factor=float(factors[0]),
            tokens_per_step_factor=float(factors[1]),
        )

    def excess_loss(self, rate_factor: float, batch_factor: float) -> float:
        """Return the fraction of loss lost by settings off by these factors."""
        off = np.log([rate_factor, batch_factor])
        return float(np.expm1(off @ self.curvature @ off))


def fit_tuning_law(
    grid: TuningGrid, *, num_bootstraps: int = NUM_DRAWS, level: float = 0.9, seed: int = 0
) -> TuningLaw:
    """Fit the bowl and the power laws of its bottom.

    log L = base of the grid + (p - p*)^T Q (p - p*), p = (log rate, log batch), p* linear in
    (1, log N, log D). Expanded, the terms are linear: Q itself, and p times (1, log N, log D).
    Exponents are pulled towards published ones by the prior above, which a few grids outweigh.

    Raises:
        ConfigError: A value is not positive, or the level is not in (0, 1).
        FitError: Fewer than two grids, or the loss is not a bowl in rate and batch.
    """
    require_level(level)
    rows, group, excess, dropped = _near_best(grid)
    num_grids = int(group.max()) + 1 if group.size else 0
    if num_grids < 2 or rows.size < 8 + num_grids:
        raise FitError(
            f"a law of rate and batch needs at least two (N, D) with {MIN_ROWS_PER_GRID} settings "
            f"within {100 * NEAR_BEST:g} % of their best: got {num_grids} with {rows.size} rows.",
            hint="Sweep rate and batch around the best setting of each size.",
        )
    log_n, log_d = np.log(grid.num_params[rows]), np.log(grid.num_tokens[rows])
    center = (float(log_n.mean()), float(log_d.mean()))
    z = np.stack([np.ones_like(log_n), log_n - center[0], log_d - center[1]])
    rate, batch = np.log(grid.learning_rate[rows]), np.log(grid.tokens_per_step[rows])
    middle = np.array([rate.mean(), batch.mean()])
    p = np.stack([rate - middle[0], batch - middle[1]])
    bowl = _Bowl(p, z, group, np.log(grid.loss[rows]), 1.0 / (1.0 + (excess / BOWL_EXCESS) ** 2))
    coefficients, curvature, noise = bowl.fit(np.ones(rows.size), np.diag([0.01, 0.01]), ITERATIONS)
    draws = bowl.draws(curvature, num_bootstraps, seed) + np.array(
        [[middle[0], 0, 0], [middle[1], 0, 0]]
    )
    coefficients[:, 0] += middle
    return TuningLaw(
        coefficients=coefficients,
        center=center,
        curvature=curvature,
        num_rows=int(rows.size),
        num_grids=num_grids,
        dropped=dropped,
        noise=noise,
        intervals=_intervals(coefficients, draws, num_bootstraps, rows.size, level),
        draws=draws,
    )


def _near_best(grid: TuningGrid) -> tuple[IntArray, IntArray, FloatArray, dict[str, int]]:
    """Return the rows used, their grids, their excess over its best, and the others by reason."""
    columns = (grid.num_params, grid.num_tokens, grid.learning_rate, grid.tokens_per_step)
    if not all((np.isfinite(c) & (c > 0)).all() for c in columns):
        raise ConfigError("sizes, tokens, rates and batches must be positive and finite.")
    finite = np.isfinite(grid.loss) & (grid.loss > 0)
    keys = np.round(np.log(np.stack(columns[:2], axis=1)), 3)
    group = np.unique(keys, axis=0, return_inverse=True)[1].ravel()
    near = np.zeros(finite.size, dtype=bool)
    excess = np.zeros(finite.size)
    sparse = 0
    for number in range(int(group.max(initial=-1)) + 1):
        mine = finite & (group == number)
        if not mine.any():
            continue
        excess[mine] = grid.loss[mine] / grid.loss[mine].min() - 1
        close = mine & (excess <= NEAR_BEST)
        if close.sum() >= MIN_ROWS_PER_GRID:
            near |= close
        else:
            sparse += int(close.sum())
    dropped = {
        "loss is absent or not finite": int((~finite).sum()),
        f"more than {100 * NEAR_BEST:g} % above the best of its grid": int((finite & ~near).sum())
        - sparse,
        "too few settings near the best of its grid": sparse,
    }
    rows = np.flatnonzero(near).astype(np.int64)
    renumbered = np.unique(group[rows], return_inverse=True)[1].astype(np.int64)
    return rows, renumbered, excess[rows], {why: num for why, num in dropped.items() if num}


def _intervals(
    coefficients: FloatArray, draws: FloatArray, num_wanted: int, num_rows: int, level: float
) -> tuple[Coefficient, ...]:
    """Return the named coefficients; all are open where resamplings often are no bowl."""
    tail = expanded_tail(level, num_rows, coefficients.size)
    values = np.array([coefficients, *draws]).reshape(-1, coefficients.size)
    values[:, [0, 3]] = np.exp(values[:, [0, 3]])
    if len(draws) < (1 - tail) * num_wanted or not len(draws):
        return tuple(
            Coefficient(name=name, value=float(value), lower=None, upper=None, level=level)
            for name, value in zip(NAMES, values[0], strict=True)
        )
    return bootstrap_coefficients(NAMES, values[0], values[1:], level=level, tail=tail, ranges={})


@dataclass(frozen=True, slots=True)
class _Bowl:
    """The regression: p (2, n) log rate and batch, z (3, n) log sizes, the grid of each row."""

    p: FloatArray
    z: FloatArray
    group: IntArray
    log_loss: FloatArray
    nearness: FloatArray

    def draws(self, curvature: FloatArray, num: int, seed: int) -> FloatArray:
        """Return coefficients of resampled rows, shape (at most num, 2, 3): of those with a bowl."""
        found = []
        for counts in resampling_counts(self.log_loss.size, num, seed):
            try:
                found.append(self.fit(counts, curvature, DRAW_ITERATIONS)[0])
            except FitError:
                continue  # counted by its absence: `_intervals` compares with what was wanted
        return np.array(found).reshape(-1, 2, 3)

    def fit(
        self, counts: FloatArray, curvature: FloatArray, iterations: int
    ) -> tuple[FloatArray, FloatArray, float]:
        """Return p* coefficients (2, 3), Q (2, 2) and the noise.

        Alternates robust least squares with the prior on exponents, which speaks of p* and is
        therefore restated in terms of the linear features at the current Q.
        """
        num_grids = int(self.group.max()) + 1
        features = self._features()
        nearness = self.nearness * counts
        weights = nearness
        prior_mean, prior_precision = _prior()
        noise = HUBER
        solution: FloatArray = np.zeros(features.shape[1])
        for _ in range(iterations):
            # c = -2 Q p* for each column of z: the prior on p* becomes one on the last six features.
            link = -2 * np.kron(curvature, np.eye(3))
            inverse = np.linalg.inv(link)
            pull = np.zeros((features.shape[1], features.shape[1]))
            pull[-6:, -6:] = inverse.T @ np.diag(prior_precision) @ inverse
            shift = np.zeros(features.shape[1])
            shift[-6:] = link @ prior_mean
            gram = (features.T * weights) @ features / noise**2 + pull
            gram += 1e-10 * np.trace(gram) / len(gram) * np.eye(len(gram))
            right = (features.T * weights) @ self.log_loss / noise**2 + pull @ shift
            solution = np.asarray(np.linalg.solve(gram, right), dtype=np.float64)
            residual = self.log_loss - features @ solution
            noise = max(robust_deviation(residual), 0.5 * HUBER)
            weights = nearness * np.minimum(1.0, 1.5 * noise / np.maximum(np.abs(residual), 1e-12))
            curvature = _curvature(*solution[num_grids : num_grids + 3])
        inverse = np.linalg.inv(-2 * np.kron(curvature, np.eye(3)))
        return (inverse @ solution[-6:]).reshape(2, 3), curvature, noise

    def _features(self) -> FloatArray:
        p = self.p
        base = np.eye(int(self.group.max()) + 1)[self.group]
        bowl = np.stack([p[0] ** 2, 2 * p[0] * p[1], p[1] ** 2], axis=1)
        moves = np.concatenate([p[0] * self.z, p[1] * self.z]).T
        return np.concatenate([base, bowl, moves], axis=1)


def _curvature(q11: float, q12: float, q22: float) -> FloatArray:
    """Return Q, or refuse one that is not positive definite."""
    found = np.array([[q11, q12], [q12, q22]])
    if not (np.linalg.eigvalsh(found) > 0).all():
        raise FitError(
            "loss is not a bowl in rate and batch: the best setting lies outside the sweep "
            f"(curvatures {q11:.2g} in rate, {q22:.2g} in batch).",
            hint="Sweep smaller and larger rates and batches.",
        )
    return found


def _prior() -> tuple[FloatArray, FloatArray]:
    """Return mean and precision of (constant, N, D) for rate, then for batch."""
    mean, precision = [], []
    for exponents in (RATE_EXPONENTS, BATCH_EXPONENTS):
        pairs = [(0.0, np.inf), exponents["num_params"], exponents["num_tokens"]]
        mean += [pair[0] for pair in pairs]
        precision += [0.0 if np.isinf(pair[1]) else pair[1] ** -2 for pair in pairs]
    return np.array(mean), np.array(precision)
