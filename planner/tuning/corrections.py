"""Measured over estimated cost, over configurations."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["CostCorrection"]

Array = NDArray[np.float64]

_RIDGE: Final = 1.0
_MAX_LOG: Final = math.log(20.0)


class CostCorrection:
    """A ridge regression of the logarithm of measured over estimated cost on encoded points.

    Args:
        num_columns: Numbers of an encoded point.
    """

    def __init__(self, num_columns: int) -> None:
        self._gram = np.eye(num_columns + 1) * _RIDGE
        self._gram[0, 0] = 1e-3
        self._moment: Array = np.zeros(num_columns + 1)
        self._line: Array = np.zeros(num_columns + 1)

    def add(self, vector: Array, ratio: float) -> None:
        """Take in one measured trial."""
        if not (ratio > 0 and math.isfinite(ratio)):
            return
        row = np.concatenate([[1.0], vector - 0.5])
        self._gram += np.outer(row, row)
        self._moment += row * min(max(math.log(ratio), -_MAX_LOG), _MAX_LOG)
        self._line = np.linalg.solve(self._gram, self._moment).astype(float)

    def factor(self, vector: Array) -> float:
        """Return what to multiply an estimated cost by; 1 before anything is measured."""
        log = self._line[0] + float(self._line[1:] @ (vector - 0.5))
        return math.exp(min(max(log, -_MAX_LOG), _MAX_LOG))
