"""The octave scheduler: successive halving that looks at every doubling of compute."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping
from typing import Any

from planner.study import SchedulerConfig
from planner.tuning.records import SAME_FLOPS, Decision
from planner.tuning.schedulers import rungs_between

__all__ = ["Octaves"]


class Octaves:
    """Asynchronous halving with a rung at every power of 2 in FLOPs, on the best loss so far.

    At a rung a trial goes on if its best loss so far is among the best 1 / reduction_factor of the
    trials that have reached that rung, itself included; the first to arrive goes on. Of equal ones
    those that went on count as better: repeats of one result do not all run to the end, nor are
    all but one cut where all results are alike. With a factor above 2, each octave gets less
    compute in all than the one before, so most of it is spent on looking at many trials. Rungs so
    close cut a trial soon after it falls behind, and the lowest lies at the second of two reports
    or later where the grace allows it, because a single report tells little.

    Source: the rule is that of Li et al. 2020 (arXiv:1810.05934), algorithm 2, in its stopping
    form; the rungs, compute in the place of epochs and the best loss so far are ours.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._factor = config.reduction_factor
        self._grace = config.grace_fraction
        self._within = config.within
        self._rungs: dict[tuple[str, int], list[float]] = {}
        self._went_on: Counter[tuple[tuple[str, int], float]] = Counter()
        """Rung and loss -> trials with just that loss that went on from there."""
        self._passed: dict[str, int] = {}
        self._best: dict[str, float] = {}

    def rungs(self, planned_flops: float) -> tuple[float, ...]:
        """Return the powers of 2 between the grace and the trial's end.

        >>> Octaves(SchedulerConfig(name="octaves", grace_fraction=0.1)).rungs(100.0)
        (16.0, 32.0, 64.0)
        """
        return rungs_between(planned_flops, self._grace, 2.0)

    def report(
        self, trial: str, point: Mapping[str, Any], planned_flops: float, flops: float, loss: float
    ) -> Decision:
        """Return STOP at a rung where the trial is not among the best."""
        best = min(self._best.get(trial, math.inf), loss if math.isfinite(loss) else math.inf)
        self._best[trial] = best
        if flops < 1.0:
            return Decision.CONTINUE
        reached = math.floor(math.log2(flops) + SAME_FLOPS)
        if reached <= self._passed.get(trial, -1):
            return Decision.CONTINUE
        passed = self._passed.get(trial, -1)
        self._passed[trial] = reached
        group = repr([point.get(name) for name in self._within])
        for rung in self.rungs(planned_flops):
            octave = round(math.log2(rung))
            if passed < octave <= reached and not self._goes_on((group, octave), best):
                return Decision.STOP
        return Decision.CONTINUE

    def _goes_on(self, rung: tuple[str, int], best: float) -> bool:
        losses = self._rungs.setdefault(rung, [])
        if not math.isfinite(best):
            return False
        insort(losses, best)
        ahead = bisect_left(losses, best) + self._went_on[rung, best]
        goes_on = ahead < max(1, int(len(losses) / self._factor))
        self._went_on[rung, best] += goes_on
        return goes_on
