"""The model of a cost-aware search: what it expects of points that have not run."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.tuning.priors import CURVATURE
from planner.tuning.surrogate import (
    GaussianProcess,
    Hyperparameters,
    expected_improvement,
    normal_cdf,
)
from planner.tuning.told import Observations, Told

__all__ = ["ResultModel"]

Array = NDArray[np.float64]

_MOST_OBSERVED: Final = 160
"""Observations that a process is built on."""
_MOST_FITTED: Final = 120
"""Observations that its hyperparameters are fitted to."""
_REFIT_GROWTH: Final = 1.3
"""The hyperparameters are fitted again when the news has grown by this factor."""
_LAZINESS: Final = 20
"""The process is built again after one piece of news per so many trials, and one."""
_NUM_VARIANCES: Final = 128
"""Candidates of the best expectation whose uncertainty is computed; as many others besides."""
_NUM_BEST: Final = 6
"""Trials near which candidates are drawn."""
_CURVATURE_SPREAD: Final = 0.7
"""Standard deviation of the prior curvature, as a share of it."""
_MEMORY_NOISE: Final = 0.2
"""Variance of the labels: a lone success or failure proves little about its neighbours."""
_SURE: Final = 0.95
_BOLD: Final = 0.8
"""Chance of running from which a candidate counts as safe: after failures, and without recent ones."""
_RECENT: Final = 20
_FEW_FAILURES: Final = 0
"""Failures among so many recent trials up to which the bolder chance is taken."""
_UNSAFE: Final = -1e6
_RIDGE: Final = 0.5
_MIN_FAILURES: Final = 1


class ResultModel:
    """Expected final losses and chances to run, over encoded points.

    Args:
        told: What the searcher has been told.
        has_law: Whether distances from a prior law's optimum are known.
        num_needed: Observations before it expects anything.
    """

    def __init__(self, told: Told, has_law: bool, num_needed: int) -> None:
        self._told, self._has_law, self._num_needed = told, has_law, num_needed
        self._process: GaussianProcess | None = None
        self._hyperparameters: Hyperparameters | None = None
        self._memory: GaussianProcess | None = None
        self._memory_hyperparameters: Hyperparameters | None = None
        self._memory_line: Array = np.zeros(1)
        self._centre, self._scale, self._curvature = 0.0, 1.0, 0.0
        self._least = math.inf
        """Least expected loss, for want of one of this study before its first trial reports."""
        self._rows = np.empty(0, dtype=int)
        self._next_build = self._next_fit = 0

    def refresh(self) -> bool:
        """Take in the news, if there is enough; return whether there is a model."""
        news = self._told.num_changes
        if news < self._next_build:
            return self._process is not None
        observed = self._told.observations()
        if observed is None or len(observed) < self._num_needed:
            return False
        self._next_build = news + 1 + len(self._told) // _LAZINESS
        is_due = news >= self._next_fit
        if is_due:
            self._next_fit = math.ceil(_REFIT_GROWTH * news) + 1
        self._build(observed.thinned(_MOST_OBSERVED), is_due)
        self._build_memory(is_due)
        return True

    def best_rows(self) -> NDArray[np.int64]:
        """Return the trials with the best expected final losses; none without a model."""
        return self._rows[:_NUM_BEST] if self._process is not None else self._rows[:0]

    def scores(self, vectors: Array, distances: Array) -> Array:
        """Return the expected improvement of points [m], times the chance that they run."""
        assert self._process is not None  # noqa: S101 -- asked only after a refresh
        drift = self._curvature * distances / self._scale
        mean = self._process.mean(vectors) + drift
        chance = self._chance(vectors)
        is_safe = chance >= self._least_chance()
        order = np.argsort(mean + 8.0 * ~is_safe, kind="stable")
        stride = max(1, len(order) // _NUM_VARIANCES)
        near = np.unique(np.concatenate([order[:_NUM_VARIANCES], order[::stride]]))
        pending = self._told.vectors(self._told.pending())
        mean_near, deviation = self._process.predict(vectors[near], pending)
        known = self._told.best if math.isfinite(self._told.best) else self._least
        best = (known - self._centre) / self._scale
        scores = np.zeros(len(vectors))
        scores[near] = expected_improvement(mean_near + drift[near], deviation, best)
        return np.where(is_safe, scores * chance, _UNSAFE * (1.0 - chance))

    def is_safe(self, vectors: Array) -> NDArray[np.bool_]:
        """Return whether points probably run [m]."""
        return self._chance(vectors) >= self._least_chance()

    def _least_chance(self) -> float:
        _, labels = self._told.feasibility()
        return _BOLD if (labels[-_RECENT:] < 0).sum() <= _FEW_FAILURES else _SURE

    def _build(self, observed: Observations, is_due: bool) -> None:
        extra = self._told.extra_variances(observed.rows)
        distances = self._told.distances(observed.rows)
        self._least = float(observed.losses.min())
        self._curvature = self._fitted_curvature(observed, distances)
        losses = observed.losses - self._curvature * distances
        self._centre = float(losses.mean())
        self._scale = float(losses.std()) or 1e-6 * (abs(self._centre) or 1.0)
        inputs = self._told.vectors(observed.rows)
        targets = (losses - self._centre) / self._scale
        variances = (observed.variances + extra) / self._scale**2
        if self._hyperparameters is None:
            self._hyperparameters = Hyperparameters.prior(inputs.shape[1])
        if is_due:
            few = Observations(np.arange(len(observed)), observed.losses, variances)
            rows = few.thinned(_MOST_FITTED).rows
            self._hyperparameters = GaussianProcess.fit(
                inputs[rows], targets[rows], variances[rows], self._hyperparameters
            )
        self._process = GaussianProcess(inputs, targets, variances, self._hyperparameters)
        self._rows = observed.rows[np.argsort(observed.losses, kind="stable")]

    def _fitted_curvature(self, observed: Observations, distances: Array) -> float:
        """Return the loss per squared octave from the law's optimum: its prior, then the data."""
        if not self._has_law:
            return 0.0
        prior = CURVATURE * abs(float(np.median(observed.losses)))
        spread = _CURVATURE_SPREAD * prior or 1.0
        near = distances <= np.quantile(distances, 0.75)
        gaps = distances[near] - distances[near].mean()
        losses = observed.losses[near] - observed.losses[near].mean()
        noise = (0.5 * prior) ** 2 or 1.0
        weight = float((gaps**2).sum()) / noise
        slope = float((gaps * losses).sum()) / noise
        return max(0.0, (slope + prior / spread**2) / (weight + 1.0 / spread**2))

    def _build_memory(self, is_due: bool) -> None:
        rows, labels = self._told.feasibility()
        if (labels < 0).sum() < _MIN_FAILURES:
            return
        rows, labels = rows[-_MOST_OBSERVED:], labels[-_MOST_OBSERVED:]
        inputs, noise = self._told.vectors(rows), np.full(len(rows), _MEMORY_NOISE)
        self._memory_line = _ridge_line(inputs, labels)
        labels = labels - _on_line(inputs, self._memory_line)
        if self._memory_hyperparameters is None:
            self._memory_hyperparameters = Hyperparameters.prior(inputs.shape[1])
        if is_due and len(rows) >= self._num_needed:
            self._memory_hyperparameters = GaussianProcess.fit(
                inputs, labels, noise, self._memory_hyperparameters
            )
        self._memory = GaussianProcess(inputs, labels, noise, self._memory_hyperparameters)

    def _chance(self, vectors: Array) -> Array:
        """Return the chance that points run [m]."""
        if self._memory is None:
            return np.ones(len(vectors))
        mean, deviation = self._memory.predict(vectors)
        mean = mean + _on_line(vectors, self._memory_line)
        return normal_cdf(mean / np.sqrt(deviation**2 + _MEMORY_NOISE))


def _ridge_line(inputs: Array, labels: Array) -> Array:
    """Return offset and slopes [D + 1] of the labels: memory grows with most things everywhere."""
    rows = np.hstack([np.ones((len(inputs), 1)), inputs - 0.5])
    gram = rows.T @ rows + _RIDGE * np.eye(rows.shape[1])
    return np.asarray(np.linalg.solve(gram, rows.T @ labels), dtype=float)


def _on_line(inputs: Array, line: Array) -> Array:
    return np.asarray(line[0] + (inputs - 0.5) @ line[1:], dtype=float)
