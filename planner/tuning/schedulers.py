"""Schedulers: which trials are cut, and when. Fidelity is compute spent, in training FLOPs.

A scheduler sees every report once, in the ledger's order, and its answer depends on nothing else,
so replaying a ledger rebuilds it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Protocol

from planner.study import SchedulerConfig
from planner.tuning.records import Decision

__all__ = ["Asha", "NoScheduler", "Scheduler", "make_scheduler"]

_SAME: Final = 1e-9
"""Relative difference below which two amounts of compute are one."""


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

    def rungs(self, planned_flops: float) -> tuple[float, ...]:
        """Return the powers of the reduction factor between the grace and the trial's end.

        >>> Asha(SchedulerConfig(name="asha", reduction_factor=2.0)).rungs(100.0)
        (32.0, 64.0)
        """
        if planned_flops <= 0:
            return ()
        lowest = max(1.0, self._grace * planned_flops)
        first = math.ceil(math.log(lowest, self._factor) - _SAME)
        last = math.ceil(math.log(planned_flops, self._factor) - _SAME) - 1
        return tuple(self._factor**k for k in range(first, last + 1))

    def report(
        self, trial: str, point: Mapping[str, Any], planned_flops: float, flops: float, loss: float
    ) -> Decision:
        """Return STOP at a rung where the trial is not among the best."""
        group = repr([point.get(name) for name in self._within])
        for rung in self.rungs(planned_flops):
            if flops < rung * (1 - _SAME):
                break
            level = self._losses.setdefault((group, round(math.log(rung, self._factor))), {})
            if trial in level:
                continue
            level[trial] = loss
            if not self._is_among_best(loss, level):
                return Decision.STOP
        return Decision.CONTINUE

    def _is_among_best(self, loss: float, level: Mapping[str, float]) -> bool:
        if not math.isfinite(loss):
            return False
        kept = max(1, int(len(level) / self._factor))
        return sum(other < loss for other in level.values()) < kept


def make_scheduler(config: SchedulerConfig) -> Scheduler:
    """Return the scheduler that a study asks for."""
    return Asha(config) if config.name == "asha" else NoScheduler()
