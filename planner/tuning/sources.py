"""Sources of simulated trials: what a point costs and how its loss would unfold.

A source answers two questions of the simulator: `price`, before a trial starts, and `timeline`, when
it does. Both depend on nothing but their arguments, so a simulated study is deterministic. Tables of
measured curves are in `tables`; here is the source that needs no measurement: the cost model's time
and a law of loss against parameters and tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from planner.costs import Cluster, CostEstimate, estimate
from planner.planning import Candidate, candidate
from planner.search_space import Point
from planner.study import Study
from planner.trial import TrialConfig, TrialState

__all__ = ["LawSource", "LossLaw", "Pace", "Source", "Timeline"]

LossLaw = Callable[[float, float], float]
"""Loss in nats per token of a model with so many parameters, trained on so many tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """How one trial unfolds from its workers' start if nobody stops it."""

    seconds: Sequence[float]
    """Training time at each report, rising."""
    flops: Sequence[float]
    """Training FLOPs at each report, rising."""
    reports: Sequence[Mapping[str, Any]]
    """Metrics at each report, without `train_flops`; one that is not finite is divergence."""
    end: TrialState = TrialState.COMPLETED
    """State after the last report."""
    reason: str | None = None
    startup_seconds: float = 0.0
    """From the workers' start to the first step."""
    warm_seconds: float | None = None
    """The same where warm workers of a former trial take it over; None: no less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """True times over those of the cost model, which knows steps and the start alone."""

    steps: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    """Estimated seconds of a step, and what to multiply them by; in between, log-linearly."""
    validation_steps: float = 0.0
    """Time of one validation with its checkpoint, in steps."""
    startup_seconds: float | None = None
    """Of a new worker; None: what the cost model says, slowed as the steps are."""
    warm_seconds: float | None = None
    """Of a worker that a former trial has left; None: workers are not reused."""

    def ratio(self, step_seconds: float) -> float:
        """Return what to multiply the estimated time of a step by.

        >>> Pace(steps=((0.01, 4.0), (1.0, 1.0))).ratio(0.1)
        2.0
        """
        known = sorted((math.log(seconds), math.log(ratio)) for seconds, ratio in self.steps)
        where = [seconds for seconds, _ in known]
        log = float(np.interp(math.log(step_seconds), where, [ratio for _, ratio in known]))
        return round(math.exp(log), 12)


class Source(Protocol):
    """Where the simulator's trials come from."""

    def price(self, trial: str, point: Point) -> Candidate:
        """Return what a point would cost, or why it cannot run."""
        ...

    def timeline(
        self, trial: str, point: Point, config: TrialConfig, report_at_flops: Sequence[float]
    ) -> Timeline:
        """Return how the trial would unfold; it reports at the given FLOPs too, where it can."""
        ...


class LawSource:
    """Trials that take the time of the cost model and reach the loss of a law.

    Args:
        study: The study to rehearse.
        cluster: What it would run on.
        loss: Loss against non-embedding parameters and tokens; a fitted law's `predict` serves.
        pace: True times over the cost model's.
        spread_fraction: Standard deviation between trials of one size and length, which differ in
            their other settings, as a share of the loss. Without any, no trial is worth cutting.
    """

    def __init__(
        self, study: Study, cluster: Cluster, loss: LossLaw, *, pace: Pace | None = None,
        spread_fraction: float = 0.0,
    ) -> None:  # fmt: skip
        self._study, self._cluster = study, cluster
        self._loss, self._pace, self._spread = loss, pace or Pace(), spread_fraction

    def price(self, trial: str, point: Point) -> Candidate:
        """Return the cost model's estimate."""
        return candidate(self._study, self._cluster, trial, point)

    def timeline(
        self, trial: str, point: Point, config: TrialConfig, report_at_flops: Sequence[float]
    ) -> Timeline:
        """Return the law's losses at the trial's validations and at the given FLOPs."""
        cost = estimate(config, self._cluster)
        shares = _report_shares(config, cost, report_at_flops)
        ratio = self._pace.ratio(cost.step_seconds)
        validation = self._pace.validation_steps * ratio * cost.step_seconds
        seconds = [
            share * cost.train_seconds * ratio + number * validation
            for number, share in enumerate(shares, start=1)
        ]
        startup = self._pace.startup_seconds
        luck = 1.0 + self._spread * random.Random(repr(sorted(point.items()))).gauss(0.0, 1.0)
        return Timeline(
            seconds=seconds,
            flops=[share * cost.train_flops for share in shares],
            reports=[
                self._report(cost, share, took, luck)
                | {"tokens_per_second": config.tokens_per_step / (cost.step_seconds * ratio)}
                for share, took in zip(shares, seconds, strict=True)
            ],
            startup_seconds=cost.startup_seconds * ratio if startup is None else startup,
            warm_seconds=self._pace.warm_seconds,
        )

    def _report(
        self, cost: CostEstimate, share: float, seconds: float, luck: float
    ) -> dict[str, Any]:
        tokens = share * cost.train_tokens
        return {
            "val_loss": luck * float(self._loss(float(cost.num_params_non_embedding), tokens)),
            "train_tokens": round(tokens),
            "num_steps": round(share * cost.num_steps),
            "train_seconds": seconds,
            "peak_memory_bytes": cost.peak_memory_bytes,
        }


def _report_shares(
    config: TrialConfig, cost: CostEstimate, report_at_flops: Sequence[float]
) -> list[float]:
    """Return the shares of a training at which it reports, rising to 1."""
    count = config.train.num_validations
    shares = {(i + 1) / count for i in range(count)}
    shares |= {flops / cost.train_flops for flops in report_at_flops if flops < cost.train_flops}
    return sorted(share for share in shares if share > 0)
