"""Schedulers: which trials are cut, and when. Fidelity is compute spent, in training FLOPs.

A scheduler sees every report once, in the ledger's order, and its answer depends on nothing else,
so replaying a ledger rebuilds it exactly.
"""

from __future__ import annotations

import math
import random
import statistics
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from planner.study import SchedulerConfig
from planner.tuning.records import SAME_FLOPS, Decision

__all__ = [
    "Asha",
    "Hyperband",
    "Median",
    "NoScheduler",
    "Scheduler",
    "make_scheduler",
    "rungs_between",
]

_MIN_FOR_MEDIAN: Final = 3


class Scheduler(Protocol):
    """What the core asks of a scheduler."""

    def rungs(self, planned_flops: float) -> tuple[float, ...]:
        """Return the compute at which a trial of that length must report, rising."""
        ...

    def report(
        self, trial: str, point: Mapping[str, Any], planned_flops: float, flops: float, loss: float
    ) -> Decision:
        """Return what a trial does after a report; `loss` is what should be small."""
        ...


def rungs_between(planned_flops: float, grace_fraction: float, factor: float) -> tuple[float, ...]:
    """Return the powers of a factor between a share of a trial's compute and all of it, rising."""
    if planned_flops <= 0:
        return ()
    lowest = max(1.0, grace_fraction * planned_flops)
    first = math.ceil(math.log(lowest, factor) - SAME_FLOPS)
    last = math.ceil(math.log(planned_flops, factor) - SAME_FLOPS) - 1
    return tuple(factor**k for k in range(first, last + 1))


class NoScheduler:
    """Every trial runs to its end."""

    def rungs(self, planned_flops: float) -> tuple[float, ...]:
        """Return nothing: no report is asked for."""
        return ()

    def report(
        self, trial: str, point: Mapping[str, Any], planned_flops: float, flops: float, loss: float
    ) -> Decision:
        """Return CONTINUE."""
        return Decision.CONTINUE


class Asha:
    """Asynchronous successive halving on one ladder of compute that all trials share.

    Rungs lie at powers of the reduction factor in FLOPs. A trial meets those between its grace
    (a share of its own planned compute) and its planned compute. At a rung it goes on if it is
    among the best 1 / reduction_factor of the trials that have reached that rung so far, itself
    included; the first to arrive goes on.

    Source: Li et al. 2020 (arXiv:1810.05934), algorithm 2, in its stopping form; compute in the
    place of epochs is ours.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._factor = config.reduction_factor
        self._grace = config.grace_fraction
        self._within = config.within
        self._losses: dict[tuple[str, int], dict[str, float]] = {}
        self._ranked: dict[tuple[str, int], list[float]] = {}
        """Finite losses at a rung, rising, so that a rank costs no walk through all trials."""

    def rungs(self, planned_flops: float) -> tuple[float, ...]:
        """Return the powers of the reduction factor between the grace and the trial's end.

        >>> Asha(SchedulerConfig(name="asha", reduction_factor=2.0)).rungs(100.0)
        (32.0, 64.0)
        """
        return rungs_between(planned_flops, self._grace, self._factor)

    def report(
        self, trial: str, point: Mapping[str, Any], planned_flops: float, flops: float, loss: float
    ) -> Decision:
        """Return STOP at a rung where the trial is not among the best."""
        group = repr([point.get(name) for name in self._within])
        for rung in self.rungs(planned_flops):
            if flops < rung * (1 - SAME_FLOPS):
                break
            key = (group, round(math.log(rung, self._factor)))
            level, ranked = self._losses.setdefault(key, {}), self._ranked.setdefault(key, [])
            if trial in level:
                continue
            level[trial] = loss
            if math.isfinite(loss):
                insort(ranked, loss)
            if not self._is_among_best(loss, level, ranked):
                return Decision.STOP
        return Decision.CONTINUE

    def _is_among_best(
        self, loss: float, level: Mapping[str, float], ranked: Sequence[float]
    ) -> bool:
        if not math.isfinite(loss):
            return False
        return bisect_left(ranked, loss) < max(1, int(len(level) / self._factor))


class Median(Asha):
    """Stops a trial that is worse at a rung than the median of all that have reached it, itself too.

    Nobody is stopped before three others have reached the rung. Source: Golovin et al. 2017 (Google
    Vizier), section 3.2, with the loss at a rung in the place of the mean up to it.
    """

    def _is_among_best(
        self, loss: float, level: Mapping[str, float], ranked: Sequence[float]
    ) -> bool:
        if not math.isfinite(loss):
            return False
        return len(level) <= _MIN_FOR_MEDIAN or loss <= statistics.median(ranked)


class Hyperband:
    """Successive halving with several graces at once, so that slow starters have a chance.

    A trial belongs to one bracket for good. Bracket s skips the s lowest rungs; a bracket gets a
    share of the trials in proportion to factor^(S - s) / (S - s + 1) of S + 1 brackets, the most
    going to the most aggressive. Each bracket halves by itself.

    Source: Li et al. 2018 (arXiv:1603.06560), algorithm 1, with ASHA's asynchronous halving inside
    each bracket as in arXiv:1810.05934, section 3.3.
    """

    def __init__(self, config: SchedulerConfig, seed: int) -> None:
        factor, grace = config.reduction_factor, config.grace_fraction
        span = -math.log(grace, factor) if 0 < grace < 1 else 1.0
        last = max(0, math.floor(span + SAME_FLOPS))
        self._brackets = [
            Asha(config.replace(grace_fraction=min(1.0, grace * factor**s)))
            for s in range(last + 1)
        ]
        weights = [factor ** (last - s) / (last - s + 1) for s in range(last + 1)]
        self._weights = [weight / sum(weights) for weight in weights]
        self._seed = seed

    def rungs(self, planned_flops: float) -> tuple[float, ...]:
        """Return the rungs of the bracket with the smallest grace, which has all."""
        return self._brackets[0].rungs(planned_flops)

    def report(
        self, trial: str, point: Mapping[str, Any], planned_flops: float, flops: float, loss: float
    ) -> Decision:
        """Return what the trial's bracket says."""
        return self._of(trial).report(trial, point, planned_flops, flops, loss)

    def _of(self, trial: str) -> Asha:
        position = random.Random(f"{self._seed} {trial}").random()
        for bracket, weight in zip(self._brackets, self._weights, strict=True):
            if position < weight:
                return bracket
            position -= weight
        return self._brackets[-1]


def make_scheduler(config: SchedulerConfig, seed: int = 0) -> Scheduler:
    """Return the scheduler that a study asks for."""
    if config.name == "asha":
        return Asha(config)
    if config.name == "octaves":
        from planner.tuning.octaves import Octaves

        return Octaves(config)
    if config.name == "median":
        return Median(config)
    if config.name in ("hyperband", "bohb"):
        return Hyperband(config, seed)
    if config.name == "pbt":
        from planner.tuning.population import Population

        return Population(config, seed)
    if config.name == "pb2":
        from planner.tuning.pb2 import BanditPopulation

        return BanditPopulation(config, seed)
    return NoScheduler()
