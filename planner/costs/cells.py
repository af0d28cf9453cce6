"""Cells of a table of configurations, as text, numbers and counts."""

from __future__ import annotations

import math
from collections.abc import Mapping

from planner.errors import ConfigError

__all__ = ["count_of", "number_of", "text_of"]


def number_of(row: Mapping[str, str], name: str, default: float | None = None) -> float:
    """Return a cell as a finite number that is not negative.

    Raises:
        ConfigError: It is none, or is absent and has no default.
    """
    text = (row.get(name) or "").strip()
    if text and text.lower() not in ("nan", "none", "na", "unknown"):
        try:
            value = float(text)
        except ValueError as error:
            raise ConfigError(f"{name} must be a number (got {text!r})") from error
        if not math.isfinite(value) or value < 0:
            raise ConfigError(f"{name} must be finite and not negative (got {text})")
        return value
    if default is None:
        raise ConfigError(f"{name} is missing")
    return default


def count_of(row: Mapping[str, str], name: str, default: float | None = None) -> float:
    """Return a cell as a number of at least 1.

    Raises:
        ConfigError: It is none, or is absent and has no default.
    """
    value = number_of(row, name, default)
    if value < 1:
        raise ConfigError(f"{name} must be at least 1 (got {value:g})")
    return value


def text_of(row: Mapping[str, str], name: str) -> str:
    """Return a cell in lower case; empty where it says that nothing is known.

    `none` is an answer in the column `recompute`.
    """
    text = (row.get(name) or "").strip().lower()
    return "" if text in ("nan", "none", "na") and name != "recompute" else text
