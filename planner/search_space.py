"""SearchSpace: named parameters, their distributions, conditions and constraints.

Parameters are dotted paths into TrialConfig with Ray Tune's names of distributions. A value that
is a mapping is merged at its path, so one parameter can choose a whole model shape. Which point
comes next is the searcher's business; the order of grid and quasi-random points is defined here,
because the plan shows it and the sweep runs it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Self, TypeGuard

import numpy as np
from pydantic import Field, JsonValue, model_validator

from planner.config import Config, Name, PositiveFloat
from planner.errors import ConfigError
from planner.expressions import Expression, lookup

__all__ = [
    "Distribution",
    "SearchSpace",
    "grid_points",
    "is_number",
    "merge",
    "quasi_random_points",
    "value_at",
]

Bounds = Annotated[tuple[float, float], Field(strict=False)]
Point = dict[str, JsonValue]
"""Parameter name -> value; parameters whose condition does not hold are absent."""

_KINDS: Final = ("choice", "uniform", "loguniform", "randint", "lograndint")


class Distribution(Config):
    """Values that one parameter may take: exactly one kind, with Ray Tune's names."""

    choice: tuple[JsonValue, ...] | None = None
    """Any of the listed values; mappings are merged at the parameter's path."""
    uniform: tuple[float, float] | None = None
    """Real numbers from low to high."""
    loguniform: tuple[float, float] | None = None
    """Positive real numbers from low to high, evenly in the logarithm."""
    randint: tuple[int, int] | None = None
    """Whole numbers from low to high, both included."""
    lograndint: tuple[int, int] | None = None
    """Positive whole numbers from low to high, both included, evenly in the logarithm."""
    q: PositiveFloat | None = None
    """Values are rounded to multiples of this."""
    when: str | None = None
    """Condition on other parameters or fixed settings; without it the parameter does not exist."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(_KINDS)} (got {', '.join(given) or 'none'})"
            )
        if self.choice is not None:
            _check_choice(self.choice)
        elif self.low >= self.high:
            raise ValueError(f"{self.kind} must have low < high (got {self.low}, {self.high})")
        elif self.is_log and self.low <= 0:
            raise ValueError(f"{self.kind} must have low > 0 (got {self.low})")
        if self.when is not None:
            Expression.parse(self.when)
        return self

    @cached_property
    def kind(self) -> str:
        """Name of the distribution."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def is_log(self) -> bool:
        """Whether values are spread evenly in their logarithm."""
        return self.kind in ("loguniform", "lograndint")

    @property
    def is_integer(self) -> bool:
        """Whether values are whole numbers."""
        return self.kind in ("randint", "lograndint")

    @property
    def low(self) -> float:
        """Smallest value of a numeric distribution."""
        return float(getattr(self, self.kind)[0])

    @property
    def high(self) -> float:
        """Largest value of a numeric distribution."""
        return float(getattr(self, self.kind)[1])

    def from_unit(self, position: float) -> JsonValue:
        """Return the value at a position in [0, 1) of the distribution.

        >>> Distribution(loguniform=(1e-4, 1e-2)).from_unit(0.5)
        0.001
        >>> Distribution(choice=(16, 32, 64)).from_unit(0.99)
        64
        """
        if self.choice is not None:
            return self.choice[min(int(position * len(self.choice)), len(self.choice) - 1)]
        low, high = self.low, self.high + (1 if self.is_integer else 0)
        if self.is_log:
            value = math.exp(math.log(low) + position * (math.log(high) - math.log(low)))
        else:
            value = low + position * (high - low)
        return self.settle(math.floor(value) if self.is_integer else value)

    def settle(self, value: float) -> JsonValue:
        """Return a number rounded to `q` and to 12 significant digits, inside the bounds."""
        if self.q is not None:
            value = round(value / self.q) * self.q
        value = float(f"{min(max(value, self.low), self.high):.12g}")
        return round(value) if self.is_integer else value

    def contains(self, value: JsonValue) -> bool:
        """Return whether a value belongs to the distribution."""
        if self.choice is not None:
            return value in self.choice
        if not is_number(value):
            return False
        return self.low <= value <= self.high and (not self.is_integer or value == int(value))

    def values(self) -> tuple[JsonValue, ...]:
        """Return all values of a finite distribution.

        Raises:
            ConfigError: There are infinitely many.
        """
        if self.choice is not None:
            return self.choice
        multiples = self._multiples()
        if multiples is None:
            raise ConfigError(f"{self.kind} has no finite list of values; give q, or use choice.")
        step = self.q or 1.0
        return tuple(dict.fromkeys(self.settle(k * step) for k in multiples))

    def num_values(self) -> int | None:
        """Return how many values it has at most, or None where there are infinitely many."""
        if self.choice is not None:
            return len(self.choice)
        multiples = self._multiples()
        return None if multiples is None else len(multiples)

    def _multiples(self) -> range | None:
        """Return k for all values k q, of whole numbers k; None where there are infinitely many."""
        step = self.q or (1.0 if self.is_integer else None)
        return None if step is None else range(round(self.low / step), round(self.high / step) + 1)


class SearchSpace(Config):
    """Named parameters and their distributions, with constraints."""

    name: Name
    """Name of the space."""
    description: str = ""
    """What the space is for."""
    parameters: dict[str, Distribution]
    """Dotted path into TrialConfig -> distribution."""
    constraints: tuple[str, ...] = ()
    """Conditions that every point must satisfy, such as `layout.tensor_parallel <= 8`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.parameters:
            raise ValueError("a search space needs at least one parameter")
        for constraint in self.constraints:
            Expression.parse(constraint)
        names = list(self.parameters)
        for position, (name, distribution) in enumerate(self.parameters.items()):
            for wanted in Expression.parse(distribution.when or "True").names():
                later = next((n for n in names[position:] if _overlap(wanted, n)), None)
                if later is not None:
                    raise ValueError(
                        f"a condition speaks of parameters that come before its own: that of "
                        f"{name} speaks of {wanted}, and {later} does not come before {name}"
                    )
        return self

    @property
    def num_points(self) -> float:
        """Points of the space at most, conditions and constraints left aside; infinite or whole."""
        counts = [each.num_values() for each in self.parameters.values()]
        return math.prod([math.inf if count is None else count for count in counts])

    def point(self, positions: Mapping[str, float], base: Mapping[str, Any]) -> Point:
        """Return the point at a position in [0, 1) of each parameter, conditions applied."""
        return self.active(
            {name: d.from_unit(positions[name]) for name, d in self.parameters.items()}, base
        )

    def active(self, point: Mapping[str, JsonValue], base: Mapping[str, Any]) -> Point:
        """Return the point without the parameters whose condition does not hold."""
        present: Point = {}
        for name, distribution in self.parameters.items():
            if name in point and self.holds(distribution.when, present, base):
                present[name] = point[name]
        return present

    def holds(
        self, condition: str | None, point: Mapping[str, JsonValue], base: Mapping[str, Any]
    ) -> bool:
        """Return whether a condition is true of a point on top of fixed settings."""
        return condition is None or bool(Expression.parse(condition).of(merge(base, point)))

    def broken_constraint(
        self, point: Mapping[str, JsonValue], base: Mapping[str, Any]
    ) -> str | None:
        """Return the first constraint that a point breaks, or None."""
        config = merge(base, point)
        return next((c for c in self.constraints if not Expression.parse(c).of(config)), None)


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _overlap(first: str, second: str) -> bool:
    """Return whether two dotted paths are one, or one lies inside the other."""
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def _check_choice(choice: tuple[JsonValue, ...]) -> None:
    if not choice:
        raise ValueError("choice needs at least one value")
    repeated = [value for i, value in enumerate(choice) if value in choice[:i]]
    if repeated:
        raise ValueError(f"choice must not repeat a value (got {repeated[0]!r} twice)")


def merge(base: Mapping[str, Any], point: Mapping[str, JsonValue]) -> dict[str, Any]:
    """Return fixed settings with the values of a point put in at their dotted paths.

    >>> merge({"model": {"num_layers": 2}}, {"model": {"d_model": 64}, "train.tokens": 1000})
    {'model': {'num_layers': 2, 'd_model': 64}, 'train': {'tokens': 1000}}
    """
    merged: dict[str, Any] = _copy(base)
    for path, value in point.items():
        *parents, last = path.split(".")
        target = merged
        for part in parents:
            inner = target.get(part)
            target[part] = inner if isinstance(inner, dict) else {}
            target = target[part]
        old = target.get(last)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        target[last] = {**_copy(old), **_copy(value)} if both else _copy(value)
    return merged


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def grid_points(space: SearchSpace, base: Mapping[str, Any]) -> Iterator[Point]:
    """Yield every combination of values once, the last parameter varying fastest.

    Raises:
        ConfigError: A parameter has infinitely many values.
    """
    lists = []
    for name, distribution in space.parameters.items():
        try:
            lists.append(distribution.values())
        except ConfigError as error:
            raise ConfigError(f"grid search: parameter {name}: {error.message}") from error
    seen: list[Point] = []
    for values in itertools.product(*lists):
        point = space.active(dict(zip(space.parameters, values, strict=True)), base)
        if len(point) == len(lists):
            yield point
        elif point not in seen:
            seen.append(point)
            yield point


def quasi_random_points(space: SearchSpace, base: Mapping[str, Any], seed: int) -> Iterator[Point]:
    """Yield points without end that fill the space evenly, shifted at random by the seed.

    An additive recurrence, x_n = shift + n / phi^(k) modulo 1 with phi the root of
    x^(d+1) = x + 1 in d dimensions. Source: Roberts 2018, "The unreasonable effectiveness of
    quasirandom sequences"; the shift is Cranley and Patterson 1976.
    """
    num_dims = len(space.parameters)
    phi = 2.0
    for _ in range(64):
        phi = (1 + phi) ** (1 / (num_dims + 1))
    steps = phi ** -np.arange(1.0, num_dims + 1)
    shift = np.random.default_rng(seed).random(num_dims)
    for n in itertools.count(1):
        positions = (shift + n * steps) % 1.0
        yield space.point(dict(zip(space.parameters, positions.tolist(), strict=True)), base)


def value_at(config: Mapping[str, Any], path: str) -> object:
    """Return the value at a dotted path, or None where there is none."""
    return lookup(config, tuple(path.split(".")))
