"""Points of a search space as vectors in the unit cube, for models of the results."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from planner.search_space import Distribution, Point, SearchSpace, is_number

__all__ = ["Encoder", "finite_points", "key_of", "position_of"]

_LOG_SPAN: Final = 3.9
"""Positive numbers in a choice count as geometric when they span at least this factor."""
_EDGE: Final = 1e-12
_ABSENT: Final = 0.5
"""Where a parameter sits whose condition does not hold."""

Array = NDArray[np.float64]


class Encoder:
    """Turns points into rows of numbers, alike points into near ones.

    Numbers, also those of a choice and those inside a choice of mappings (such as a model's
    shape), take one column each, scaled to 0..1, in the logarithm where the space is. Other
    values take a column each that is 1 or 0; a conditional parameter takes one more, which says
    whether it is there.

    Args:
        space: The space of the points.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._columns = [
            column
            for name, distribution in space.parameters.items()
            for column in _columns_of(name, distribution)
        ]

    @property
    def num_columns(self) -> int:
        """Numbers per point."""
        return len(self._columns)

    def encode(self, points: Sequence[Mapping[str, JsonValue]]) -> Array:
        """Return the points as rows [num_points, num_columns]."""
        rows = [[column.of(point) for column in self._columns] for point in points]
        return np.array(rows, dtype=float).reshape(len(points), self.num_columns)


class _Column:
    """One number of a point."""

    def __init__(self, name: str, key: str | None = None) -> None:
        self.name, self.key = name, key

    def of(self, point: Mapping[str, JsonValue]) -> float:
        if self.name not in point:
            return _ABSENT
        value = point[self.name]
        if self.key is not None:
            value = value.get(self.key) if isinstance(value, dict) else None
        return self.position(value)

    def position(self, value: JsonValue) -> float:
        raise AssertionError("a column says where values lie")


class _Number(_Column):
    """A number scaled to 0..1 between its bounds."""

    def __init__(
        self, name: str, low: float, high: float, *, is_log: bool, key: str | None = None
    ) -> None:
        super().__init__(name, key)
        self._log = is_log
        self._low = math.log(low) if is_log else low
        self._span = ((math.log(high) if is_log else high) - self._low) or 1.0

    def position(self, value: JsonValue) -> float:
        if not is_number(value):
            return _ABSENT
        number = float(value)
        return ((math.log(number) if self._log else number) - self._low) / self._span


class _Equals(_Column):
    """1 where the value is a given one."""

    def __init__(self, name: str, wanted: JsonValue, key: str | None = None) -> None:
        super().__init__(name, key)
        self._wanted = wanted

    def position(self, value: JsonValue) -> float:
        return float(value == self._wanted and type(value) is type(self._wanted))


class _IsThere(_Column):
    """1 where a conditional parameter is there."""

    def of(self, point: Mapping[str, JsonValue]) -> float:
        return float(self.name in point)


def _columns_of(name: str, distribution: Distribution) -> list[_Column]:
    columns: list[_Column] = [] if distribution.when is None else [_IsThere(name)]
    if distribution.choice is None:
        low, high = distribution.low, distribution.high
        return [*columns, _Number(name, low, high, is_log=distribution.is_log)]
    values = distribution.choice
    if not all(isinstance(value, dict) for value in values):
        return columns + _columns_of_values(name, values)
    mappings: list[dict[str, JsonValue]] = [v for v in values if isinstance(v, dict)]
    for key in dict.fromkeys(itertools.chain.from_iterable(mappings)):
        columns += _columns_of_values(name, [m.get(key) for m in mappings], key)
    return columns


def _columns_of_values(
    name: str, values: Sequence[JsonValue], key: str | None = None
) -> list[_Column]:
    numbers = [float(v) for v in values if is_number(v)]
    if len(numbers) == len(values):
        low, high = min(numbers), max(numbers)
        if low == high:
            return []
        is_log = low > 0 and high >= _LOG_SPAN * low
        return [_Number(name, low, high, is_log=is_log, key=key)]
    seen: list[JsonValue] = []
    for value in values:
        if value not in seen:
            seen.append(value)
    if len(seen) == 1:
        return []
    kept = seen[:1] if len(seen) == 2 else seen
    return [_Equals(name, value, key) for value in kept]


def position_of(distribution: Distribution, value: JsonValue) -> float:
    """Return the position in [0, 1) at which a distribution has a value, or the nearest to it.

    >>> position_of(Distribution(choice=(16, 32, 64)), 40)
    0.5
    """
    if distribution.choice is not None:
        choice = list(distribution.choice)
        index = choice.index(value) if value in choice else _nearest(choice, value)
        return (index + 0.5) / len(choice)
    if not is_number(value):
        return _ABSENT
    number = min(max(float(value), distribution.low), distribution.high)
    low, high = distribution.low, distribution.high + distribution.is_integer
    if distribution.is_integer:
        number = min(number + 0.5, high)
    if distribution.is_log:
        number, low, high = math.log(number), math.log(low), math.log(high)
    return min((number - low) / (high - low), 1.0 - _EDGE)


def _nearest(choice: Sequence[JsonValue], value: JsonValue) -> int:
    numbers = [each for each in choice if is_number(each)]
    if not is_number(value) or len(numbers) < len(choice):
        return 0
    gaps = [abs(math.log(max(each, _EDGE) / max(value, _EDGE))) for each in numbers]
    return gaps.index(min(gaps))


def finite_points(space: SearchSpace, base: Mapping[str, Any], most: int) -> list[Point] | None:
    """Return every point of a space, or None if there are more than `most` or infinitely many."""
    if space.num_points > most:
        return None
    lists = [distribution.values() for distribution in space.parameters.values()]
    points: Iterable[Point] = (
        space.active(dict(zip(space.parameters, values, strict=True)), base)
        for values in itertools.product(*lists)
    )
    return list({key_of(point): point for point in points}.values())


def key_of(point: Mapping[str, JsonValue]) -> str:
    """Return a text that two points share only if they are the same."""
    return json.dumps(point, sort_keys=True)
