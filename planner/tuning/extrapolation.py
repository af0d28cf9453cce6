"""Where learning curves lead: predicts a trial's final loss from what it has shown so far.

Compute is cut into octaves, so that a trial's curve is a few numbers: its best loss by each level.
From one level to the next the loss is taken to be a straight line of the loss and of its last
change, fitted to the trials of the study that went that far and pulled towards "it stays as it is"
while they are few. What the line leaves over is the uncertainty of a step; a prediction over
several steps composes the lines and adds up what they leave over. Conditioning on the loss at the
lower level keeps the cut trials from biasing the line.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["CurveModel", "level_of"]

Array = NDArray[np.float64]

_SAME: Final = 1e-6
_PRIOR_TRIALS: Final = 3.0
"""Trials' worth of weight behind "it stays as it is"."""
_PRIOR_CHANGE: Final = 0.35
"""Expected size of a step before any trial has taken it, in standard deviations of the losses."""
_LEAST_GAIN: Final = 0.3
"""Least factor by which uncertainty is carried over a step."""


def level_of(fidelity: float, num_levels: int) -> int | None:
    """Return the highest level that a trial has reached, or None before the lowest.

    Level k of K lies at 2^(k - K + 1) of the trial's compute, so the last is its end.

    >>> level_of(0.3, 4), level_of(1.0, 4)
    (1, 3)
    """
    if fidelity <= 0:
        return None
    level = math.floor(math.log2(fidelity * (1 + _SAME))) + num_levels - 1
    return min(level, num_levels - 1) if level >= 0 else None


class CurveModel:
    """Lines from each level to the next, fitted to curves.

    Args:
        curves: Best loss by each level [n, K]; not a number where a trial has not been.
        spread: Size of differences between trials that matter.
    """

    def __init__(self, curves: Array, spread: float) -> None:
        num_steps = curves.shape[1] - 1
        self._spread = spread
        self._lines = np.zeros((num_steps, 3))
        """Per step: offset, slope of the loss, slope of its last change; all of the change."""
        self._centres = np.zeros(num_steps)
        self._variances = np.full(num_steps, (_PRIOR_CHANGE * spread) ** 2)
        for step in range(num_steps):
            rows = curves[np.isfinite(curves[:, step]) & np.isfinite(curves[:, step + 1])]
            if len(rows):
                self._fit(step, rows)

    def _fit(self, step: int, rows: Array) -> None:
        self._centres[step] = rows[:, step].mean()
        inputs = self._inputs(rows, step)
        change = rows[:, step + 1] - rows[:, step]
        weight = np.diag([0.1, _PRIOR_TRIALS, _PRIOR_TRIALS])
        line = np.linalg.solve(inputs.T @ inputs + weight, inputs.T @ change)
        left = change - inputs @ line
        prior = _PRIOR_TRIALS * (_PRIOR_CHANGE * self._spread) ** 2
        self._lines[step] = line
        self._variances[step] = (prior + float((left**2).sum())) / (_PRIOR_TRIALS + len(rows))

    def _inputs(self, rows: Array, step: int) -> Array:
        now = rows[:, step]
        before = rows[:, step - 1] if step else now
        change = np.where(np.isfinite(before), now - before, 0.0)
        ones = np.ones(len(rows))
        return np.stack(
            [ones, (now - self._centres[step]) / self._spread, change / self._spread], 1
        )

    def final(self, curves: Array, levels: NDArray[np.int64]) -> tuple[Array, Array]:
        """Return the expected final losses [n] and their variances [n].

        Args:
            curves: Best loss by each level [n, K].
            levels: Highest level of each [n].
        """
        rows, variances = curves.copy(), np.zeros(len(curves))
        for step in range(len(self._lines)):
            going = levels <= step
            if not going.any():
                continue
            change = np.minimum(self._inputs(rows[going], step) @ self._lines[step], 0.0)
            rows[going, step + 1] = rows[going, step] + change
            gain = max(_LEAST_GAIN, 1.0 + self._lines[step][1] / self._spread)
            variances[going] = variances[going] * gain**2 + self._variances[step]
        return rows[:, -1], variances
