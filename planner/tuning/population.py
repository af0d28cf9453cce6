"""Population-based training: at equal steps of compute the weak copy the strong, and change.

All members pause at each step until the last has reached it, so that they are compared at the same
compute however few devices there are, and the outcome does not depend on who was faster. Copies
go through checkpoints, so a member may go on with another layout, precision or batch.

Source: Jaderberg et al. 2017 (arXiv:1711.09846): truncation selection, perturbation by 0.8 or 1.25.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import JsonValue

from planner.search_space import Distribution, Point, SearchSpace, is_number
from planner.study import SchedulerConfig
from planner.tuning.records import SAME_FLOPS, Decision, TrialRecord

__all__ = ["Population"]

_FACTORS: Final = (0.8, 1.25)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """What one member's settings did from one step to the next."""

    step: int
    point: Point
    start: float
    """Loss that it started from; 0 for the first step, before which none is known."""
    fall: float
    """By how much its loss fell."""


class Population:
    """Pauses members at every step, and says who copies whom when all are there."""

    def __init__(self, config: SchedulerConfig, seed: int) -> None:
        self._interval = config.interval_fraction
        self._quantile = config.quantile_fraction
        self._perturb = config.perturb
        self._seed = seed
        self._steps: dict[str, int] = {}
        self._reached: dict[str, float] = {}
        """Loss of each member at its last step, which a copy does not change."""
        self._starts: dict[str, float] = {}
        """Loss from which each member goes on."""
        self._points: dict[str, Point] = {}
        self._gains: list[Gain] = []
        self._leaving: set[str] = set()
        """Members that are about to copy."""

    def rungs(self, planned_flops: float) -> tuple[float, ...]:
        """Return the compute of every step before the end.

        >>> Population(SchedulerConfig(interval_fraction=0.25), 0).rungs(8.0)
        (2.0, 4.0, 6.0)
        """
        count = math.ceil(1 / self._interval - SAME_FLOPS) - 1
        return tuple(planned_flops * self._interval * k for k in range(1, count + 1))

    def report(
        self, trial: str, point: Mapping[str, Any], planned_flops: float, flops: float, loss: float
    ) -> Decision:
        """Return PAUSE where the trial has come to a new step."""
        step = sum(flops >= rung * (1 - SAME_FLOPS) for rung in self.rungs(planned_flops))
        if step <= self._steps.get(trial, 0):
            return Decision.CONTINUE
        self._steps[trial] = step
        start = self._starts.get(trial, 0.0)
        self._gains.append(Gain(step=step, point=dict(point), start=start, fall=start - loss))
        self._reached[trial] = self._starts[trial] = loss
        self._points[trial] = dict(point)
        return Decision.PAUSE

    def copied(self, trial: str, donor: str, point: Point) -> None:
        """Hear that a member goes on from another's checkpoint with a changed point."""
        self._starts[trial] = self._reached.get(donor, 0.0)
        self._points[trial] = dict(point)
        self._leaving.discard(trial)

    def copies(
        self, members: Sequence[tuple[TrialRecord, float]], generation: int
    ) -> list[tuple[str, str]]:
        """Return (who copies, whom) of members with their losses, which must be small.

        Only members of one model, length and corpus are compared: others have other checkpoints.
        """
        groups: dict[str, list[tuple[float, str]]] = {}
        for record, loss in members:
            if record.config is not None:
                config = record.config
                key = repr((config.model, config.train, config.data))
                known = self._reached.get(record.trial, loss)
                groups.setdefault(key, []).append((known, record.trial))
        chance = random.Random(f"{self._seed} {generation}")
        found = []
        for group in groups.values():
            ranked = sorted(group)
            count = int(len(ranked) * self._quantile)
            best = [trial for _, trial in ranked[:count]]
            for _, trial in ranked[len(ranked) - count :]:
                found.append((trial, chance.choice(best)))
        self._leaving = {trial for trial, _ in found}
        return found

    def changed(
        self, space: SearchSpace, base: Mapping[str, Any], point: Point, trial: str, draw: int
    ) -> Point:
        """Return a copied point with its named parameters changed, inside the space."""
        chance = random.Random(f"{self._seed} {trial} {self._steps.get(trial, 0)} {draw}")
        new = dict(point)
        for name in self._perturb:
            if name in point:
                new[name] = _moved(space.parameters[name], point[name], chance)
        return space.active(new, base)


def _moved(distribution: Distribution, value: JsonValue, chance: random.Random) -> JsonValue:
    """Return a number times 0.8 or 1.25, a neighbour in a list of numbers, or any other choice.

    What moves in steps, such as a whole number, moves by one step at least.
    """
    if distribution.choice is None:
        assert is_number(value)  # noqa: S101 -- the space admits nothing else
        factor = chance.choice(_FACTORS)
        step = distribution.q or float(distribution.is_integer)
        change = value * (factor - 1.0)
        return distribution.settle(
            value + (change if abs(change) >= step else math.copysign(step, factor - 1.0))
        )
    numbers = sorted(each for each in distribution.choice if is_number(each))
    if is_number(value) and len(numbers) == len(distribution.choice):
        index = numbers.index(value) + chance.choice((-1, 1))
        return numbers[min(max(index, 0), len(numbers) - 1)]
    others = [each for each in distribution.choice if each != value]
    return chance.choice(others) if others else value
