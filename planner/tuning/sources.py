"""Sources of simulated trials: what a point costs and how its loss would unfold.

A source answers two questions of the simulator: `price`, before a trial starts, and `timeline`, when
it does. Both depend on nothing but their arguments, so a simulated study is deterministic. Tables of
measured curves are in `tables`; here is the source that needs no measurement: the cost model's time
and a law of loss against parameters and tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from planner.costs import Cluster, CostEstimate, estimate
from planner.planning import Candidate, candidate
from planner.search_space import Point
from planner.study import Study
from planner.trial import TrialConfig, TrialState

__all__ = ["LawSource", "LossLaw", "Source", "Timeline"]

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
        slowdown: True time over the cost model's estimate, such as a measured correction.
    """

    def __init__(
        self, study: Study, cluster: Cluster, loss: LossLaw, *, slowdown: float = 1.0
    ) -> None:
        self._study, self._cluster = study, cluster
        self._loss, self._slowdown = loss, slowdown

    def price(self, trial: str, point: Point) -> Candidate:
        """Return the cost model's estimate."""
        return candidate(self._study, self._cluster, trial, point)

    def timeline(
        self, trial: str, point: Point, config: TrialConfig, report_at_flops: Sequence[float]
    ) -> Timeline:
        """Return the law's losses at the trial's validations and at the given FLOPs."""
        cost = estimate(config, self._cluster)
        shares = _report_shares(config, cost, report_at_flops)
        return Timeline(
            seconds=[share * cost.train_seconds * self._slowdown for share in shares],
            flops=[share * cost.train_flops for share in shares],
            reports=[self._report(cost, share) for share in shares],
            startup_seconds=cost.startup_seconds * self._slowdown,
        )

    def _report(self, cost: CostEstimate, share: float) -> dict[str, Any]:
        tokens = share * cost.train_tokens
        return {
            "val_loss": float(self._loss(float(cost.num_params_non_embedding), tokens)),
            "train_tokens": round(tokens),
            "num_steps": round(share * cost.num_steps),
            "train_seconds": share * cost.train_seconds * self._slowdown,
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
