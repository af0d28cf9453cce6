"""What every curve refuses of its arguments."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from planner.curves.arrays import BoolArray, FloatArray
from planner.errors import ConfigError

__all__ = ["LARGEST_COUNT", "is_fraction", "positive_lists", "require_level", "require_positive"]

LARGEST_COUNT = 1e60
"""No count lies above: squares and products of what is below are finite in float64."""


def require_level(level: float) -> float:
    """Return the level of an interval.

    Raises:
        ConfigError: It is not in (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level must lie between 0 and 1: got {level}.")
    return level


def require_positive(**values: float | None) -> None:
    """Refuse quantities that are given and not positive and finite.

    Raises:
        ConfigError: Naming the first of them.
    """
    for name, value in values.items():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be positive and finite: got {value}.")


def positive_lists(**columns: ArrayLike) -> list[FloatArray]:
    """Return columns as float64, each of shape (n,).

    Raises:
        ConfigError: Their lengths differ, or a value is not positive and finite.
    """
    arrays = [np.asarray(values, dtype=np.float64).ravel() for values in columns.values()]
    is_sound = all((np.isfinite(array) & (array > 0)).all() for array in arrays)
    if not is_sound or len({array.size for array in arrays}) > 1:
        names = ", ".join(columns)
        raise ConfigError(f"{names} must be lists of one length, positive and finite.")
    return arrays


def is_fraction(name: str, values: FloatArray) -> BoolArray:
    """Return where values lie in 0 to 1; a sparsity of 1 would leave nothing active."""
    return (values >= 0) & (values < 1 if name == "sparsity_fraction" else values <= 1)
