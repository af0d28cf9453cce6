"""Points of a search space as Optuna's parameters, and back. Loading this module loads optuna."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import JsonValue

from planner.search_space import Distribution, Point, SearchSpace, is_number

__all__ = ["Translation", "interval_of"]

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Translation:
    """A search space in Optuna's terms: a choice is searched by the index of its value.

    Args:
        space: The space.
        base: Fixed settings, on which conditions may depend.
    """

    def __init__(self, space: SearchSpace, base: Mapping[str, Any]) -> None:
        self._space, self._base = space, base
        self.distributions = {name: _distribution(each) for name, each in space.parameters.items()}

    def ask(self, asked: optuna.Trial) -> Point:
        """Return the point that Optuna suggests, conditions applied."""
        point: Point = {}
        for name, distribution in self._space.parameters.items():
            if self._space.holds(distribution.when, point, self._base):
                point[name] = _suggest(asked, name, distribution, self.distributions[name])
        return point

    def params(self, point: Point) -> dict[str, float]:
        """Return the parameters that stand for a point."""
        return {name: _inner(self._space.parameters[name], point[name]) for name in point}

    def finished(
        self,
        point: Point,
        costs: Sequence[float] | None,
        *,
        constraints: Mapping[str, float] | None = None,
        state: optuna.trial.TrialState = optuna.trial.TrialState.COMPLETE,
    ) -> optuna.trial.FrozenTrial:
        """Return a trial that Optuna may be given as it is."""
        return optuna.trial.create_trial(
            state=state,
            values=costs,
            params=self.params(point),
            distributions={name: self.distributions[name] for name in point},
            constraints=None if constraints is None else dict(constraints),
        )


def _numbers(distribution: Distribution) -> list[float]:
    """Return the values of a choice of three numbers or more: neighbours are alike; else none."""
    values = distribution.choice or ()
    found = [v for v in values if is_number(v)]
    return found if len(found) == len(values) > 2 else []


def _ranked(distribution: Distribution) -> Sequence[JsonValue]:
    """Return the values of a choice in the order that its index counts."""
    return sorted(_numbers(distribution)) or distribution.choice or ()


def _distribution(distribution: Distribution) -> BaseDistribution:
    """Return Optuna's distribution; a choice is searched by the index of its value."""
    if distribution.choice is not None:
        last = len(distribution.choice) - 1
        if _numbers(distribution):
            return IntDistribution(0, last)
        return CategoricalDistribution(list(range(last + 1)))
    return interval_of(distribution)


def interval_of(distribution: Distribution) -> FloatDistribution | IntDistribution:
    """Return Optuna's distribution of a numeric one."""
    low, high, log = distribution.low, distribution.high, distribution.is_log
    if distribution.is_integer:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _inner(distribution: Distribution, value: JsonValue) -> float:
    """Return the number by which Optuna knows a value."""
    if distribution.choice is not None:
        return list(_ranked(distribution)).index(value)
    assert isinstance(value, int | float)  # noqa: S101 -- the space admits nothing else
    return int(value) if distribution.is_integer else float(value)


def _suggest(
    asked: optuna.Trial, name: str, distribution: Distribution, theirs: BaseDistribution
) -> JsonValue:
    if isinstance(theirs, CategoricalDistribution):
        index = asked.suggest_categorical(name, list(range(len(theirs.choices))))
    elif isinstance(theirs, IntDistribution):
        index = asked.suggest_int(name, theirs.low, theirs.high, log=theirs.log)
    else:
        assert isinstance(theirs, FloatDistribution)  # noqa: S101 -- `_distribution` makes no other
        value = asked.suggest_float(name, theirs.low, theirs.high, log=theirs.log)
        return distribution.settle(value)
    if distribution.choice is None:
        return distribution.settle(float(index))
    return _ranked(distribution)[index]
