"""What a model-based searcher has been told, as arrays."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.trial import TrialState
from planner.tuning.extrapolation import CurveModel, level_of
from planner.tuning.searchers import Outcome

__all__ = ["NUM_LEVELS", "Observations", "Told"]

Array = NDArray[np.float64]

NUM_LEVELS: Final = 6
"""Levels of compute, an octave apart: 1/32 of a trial to all of it."""
_BAD_QUANTILE: Final = 0.5
_MORE_AT_FIRST: Final = 0.4
_HALVED_AFTER: Final = 20.0
"""Losses above a quantile are all alike: how bad a bad point is teaches nothing. While few trials
are known the quantile is higher."""
_GROWTH: Final = 64


class Observations:
    """Expected final losses of the trials that have shown something.

    Args:
        rows: Numbers of the trials [n].
        losses: Expected final losses, bad ones clipped [n].
        variances: Of the expectations [n].
    """

    def __init__(self, rows: NDArray[np.int64], losses: Array, variances: Array) -> None:
        self.rows, self.losses, self.variances = rows, losses, variances

    def __len__(self) -> int:
        return len(self.rows)

    def thinned(self, most: int) -> Observations:
        """Return at most so many: the better half of them the best, the others spread evenly."""
        if len(self) <= most:
            return self
        order = np.argsort(self.losses, kind="stable")
        rest = order[most // 2 :]
        spread = np.linspace(0, len(rest) - 1, most - most // 2).astype(int)
        kept = np.sort(np.concatenate([order[: most // 2], rest[spread]]))
        return Observations(self.rows[kept], self.losses[kept], self.variances[kept])


class Told:
    """Curves and ends of trials, in the order in which they were proposed.

    Args:
        num_columns: Numbers of an encoded point.
    """

    def __init__(self, num_columns: int) -> None:
        self._number: dict[str, int] = {}
        self._vectors = np.empty((_GROWTH, num_columns))
        self._curves = np.full((_GROWTH, NUM_LEVELS), np.nan)
        self._levels = np.full(_GROWTH, -1)
        self._extra = np.zeros(_GROWTH)
        self._distances = np.zeros(_GROWTH)
        self._states: list[TrialState | None] = []
        self.ratios: dict[int, float] = {}
        """Number of a trial -> its measured over its estimated cost."""
        self.best = math.inf
        """Best loss that any trial of this study has reported."""
        self.num_changes = 0
        """Counts what changes the model."""

    def __len__(self) -> int:
        return len(self._states)

    def add(self, trial: str, vector: Array, distance: float) -> None:
        """Take in a proposed trial; `distance` is from the prior's optimum."""
        number = len(self._states)
        if number == len(self._levels):
            self._grow()
        self._number[trial] = number
        self._vectors[number] = vector
        self._distances[number] = distance
        self._states.append(None)

    def add_earlier(self, vector: Array, distance: float, loss: float, variance: float) -> None:
        """Take in a finished trial of an earlier study."""
        self.add(f"earlier {len(self)}", vector, distance)
        self._curves[len(self) - 1] = loss
        self._levels[len(self) - 1] = NUM_LEVELS - 1
        self._extra[len(self) - 1] = variance
        self._states[-1] = TrialState.COMPLETED
        self.num_changes += 1

    def _grow(self) -> None:
        more = len(self._levels)
        self._vectors = np.vstack([self._vectors, np.empty_like(self._vectors)])
        self._curves = np.vstack([self._curves, np.full((more, NUM_LEVELS), np.nan)])
        self._levels = np.concatenate([self._levels, np.full(more, -1)])
        self._extra = np.concatenate([self._extra, np.zeros(more)])
        self._distances = np.concatenate([self._distances, np.zeros(more)])

    def report(self, trial: str, fidelity: float, loss: float) -> None:
        """Hear a loss of a trial under way."""
        number, level = self._number.get(trial), level_of(fidelity, NUM_LEVELS)
        if number is None or not math.isfinite(loss):
            return
        self.best = min(self.best, loss)
        if level is None:
            return
        curve, before = self._curves[number], int(self._levels[number])
        so_far = min(curve[before], loss) if before >= 0 else loss
        if level > before:
            self._levels[number] = level
            self.num_changes += 1
        curve[max(before + 1, 0) : level + 1] = so_far
        curve[level] = so_far

    def end(self, trial: str, outcome: Outcome) -> None:
        """Hear how a trial ended."""
        number = self._number.get(trial)
        if number is None:
            return
        if outcome.state is TrialState.COMPLETED and outcome.loss is not None:
            self.report(trial, 1.0, outcome.loss)
        self._states[number] = outcome.state
        if not outcome.is_allowed:
            self._forbid(number)
        self.num_changes += 1

    def _forbid(self, number: int) -> None:
        """Count a trial that broke a constraint among those that could not run."""
        self._states[number] = TrialState.OUT_OF_MEMORY
        seen = [
            row
            for row in range(len(self))
            if not self._extra[row] and self._states[row] is not TrialState.OUT_OF_MEMORY
        ]
        self.best = float(np.nanmin(self._curves[seen], initial=math.inf))

    def vectors(self, rows: NDArray[np.int64]) -> Array:
        """Return the encoded points of trials."""
        return self._vectors[rows]

    def distances(self, rows: NDArray[np.int64]) -> Array:
        """Return the distances of trials from the prior's optimum."""
        return self._distances[rows]

    def extra_variances(self, rows: NDArray[np.int64]) -> Array:
        """Return the variances that earlier trials have for being of another study."""
        return self._extra[rows]

    def pending(self) -> NDArray[np.int64]:
        """Return the trials that have neither shown anything nor ended."""
        seen = self._levels[: len(self)] >= 0
        return np.array(
            [i for i, state in enumerate(self._states) if state is None and not seen[i]], dtype=int
        )

    def feasibility(self) -> tuple[NDArray[np.int64], Array]:
        """Return the trials that ran or could not, and 1 or -1 for them."""
        states = (TrialState.OUT_OF_MEMORY, TrialState.INFEASIBLE)
        could_not = np.array([state in states for state in self._states], dtype=bool)
        seen = (self._levels[: len(self)] >= 0) | np.array(
            [s in (TrialState.COMPLETED, TrialState.DIVERGED) for s in self._states], dtype=bool
        )
        rows = np.flatnonzero(could_not | seen)
        return rows, np.where(could_not[rows], -1.0, 1.0)

    def observations(self) -> Observations | None:
        """Return what the trials' final losses are expected to be, or None while too few are known.

        A trial that diverged counts as bad, whatever it showed before.
        """
        count = len(self)
        levels = self._levels[:count]
        diverged = np.array([s is TrialState.DIVERGED for s in self._states], dtype=bool)
        could_not = np.array([s is TrialState.OUT_OF_MEMORY for s in self._states], dtype=bool)
        shown = np.flatnonzero((levels >= 0) & ~diverged & ~could_not)
        if not len(shown):
            return None
        last = self._curves[shown, levels[shown]]
        cap = float(
            np.quantile(last, _BAD_QUANTILE + _MORE_AT_FIRST * 0.5 ** (len(last) / _HALVED_AFTER))
        )
        spread = float(np.minimum(last, cap).std()) or 1e-6 * (abs(cap) or 1.0)
        cap += 0.5 * spread
        curves = np.minimum(self._curves[shown], cap)
        losses, variances = CurveModel(curves, spread).final(curves, levels[shown])
        bad = np.flatnonzero(diverged)
        return Observations(
            np.concatenate([shown, bad]),
            np.concatenate([losses, np.full(len(bad), cap)]),
            np.concatenate([variances, np.zeros(len(bad))]),
        )
