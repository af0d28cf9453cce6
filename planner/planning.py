"""Plan: what a study would run, what it would cost, and what is rejected and why.

Nothing is started here. The sweep runs exactly what the plan shows for grid and random search;
for a search that learns from results the plan shows a sample of the space in its place.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from pydantic import JsonValue

from planner.budget import Spend, format_amount
from planner.costs import Cluster, CostEstimate, estimate, resolve_cluster
from planner.errors import BudgetError, ConfigError, InfeasibleError
from planner.search_space import Point, grid_points, quasi_random_points
from planner.study import Study, trial_config
from planner.trial import TrialConfig
from planner.trial.support import check_supported
from planner.units import format_bytes

if TYPE_CHECKING:
    from planner.costs.calibration import Calibration
    from planner.costs.measured import Measured
    from planner.costs.tracing import Traces

__all__ = [
    "MAX_REJECTIONS_PER_TRIAL",
    "Candidate",
    "Plan",
    "candidate",
    "charge",
    "plan",
    "proposals",
]

MAX_REJECTIONS_PER_TRIAL: Final = 50
"""Proposals that may be rejected for each one that is wanted before the space counts as empty."""

_NEAR_LIMIT: Final = (0.8, 1.25)
"""Closed-form memory over what may be filled between which a trace decides: the closed form is off by up to
a sixth, and by more where the heap is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One point of the space, priced; rejected if it has a reason."""

    trial: str
    """Identifier within the study, such as `t007`."""
    point: Point
    config: TrialConfig | None = None
    cost: CostEstimate | None = None
    reason: str | None = None
    """Why it cannot run; None if it can."""
    memory_note: str | None = None
    """Which figure of memory decided, where the closed form is near the limit; None elsewhere."""

    @property
    def is_feasible(self) -> bool:
        """Whether it can run."""
        return self.reason is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a study would run and what that would cost if no trial were cut."""

    study: Study
    cluster: Cluster
    candidates: tuple[Candidate, ...]
    """In the order in which they would start, the rejected among them."""
    total: Spend
    """Estimated cost of all feasible candidates trained to their end."""
    is_sample: bool
    """Whether the search picks its own points, so that these only stand for them."""
    calibrated_on: tuple[tuple[str, int], ...] = ()
    """Runs whose trials calibrated the estimates, with their numbers of trials."""
    num_memory_traces: int = 0
    """Shapes near the memory limit whose memory was traced from the engine's own model."""

    @property
    def feasible(self) -> tuple[Candidate, ...]:
        """Candidates that can run."""
        return tuple(c for c in self.candidates if c.is_feasible)

    @property
    def rejected(self) -> tuple[Candidate, ...]:
        """Candidates that cannot run."""
        return tuple(c for c in self.candidates if not c.is_feasible)

    def to_data(self) -> dict[str, object]:
        """Return the plan as plain data: the content of `plan.json`."""
        return {
            "schema": "planner.plan/1",
            "study": self.study.name,
            "candidates": [
                {
                    "trial": c.trial,
                    "state": "planned" if c.is_feasible else "infeasible",
                    "reason": c.reason,
                    "memory_note": c.memory_note,
                    "point": c.point,
                    "config": None if c.config is None else c.config.model_dump(mode="json"),
                    "cost": None if c.cost is None else asdict(c.cost),
                }
                for c in self.candidates
            ],
            "num_memory_traces": self.num_memory_traces,
            "total": asdict(self.total),
            "budget": self.study.budget.limits(),
            "is_sample": self.is_sample,
            "calibrated_on": [
                {"run": name, "num_trials": number} for name, number in self.calibrated_on
            ],
        }

    def bill(self) -> dict[str, tuple[float, float]]:
        """Return `{field: (estimated, limit)}` for every limit of the budget."""
        return {
            name: (getattr(self.total, name), limit)
            for name, limit in self.study.budget.limits().items()
        }


def charge(cost: CostEstimate) -> Spend:
    """Return what an estimate charges a budget; `seconds` is the trial's own duration."""
    return Spend(
        flops=cost.train_flops,
        device_hours=cost.device_hours,
        usd=cost.usd or 0.0,
        seconds=cost.startup_seconds + cost.train_seconds,
        kwh=cost.kwh or 0.0,
    )


def candidate(
    study: Study,
    cluster: Cluster,
    trial: str,
    point: Point,
    *,
    calibration: Calibration | None = None,
    traces: Traces | None = None,
) -> Candidate:
    """Return a point priced on a cluster, or rejected with the reason.

    With `traces`, the engine's own model says whether it fits where the closed form is near the limit.
    """
    try:
        config = trial_config(study, point)
    except ConfigError as error:
        lines = error.message.split("\n")
        reason = lines[-1].strip().removeprefix("point: ").removeprefix("(top): ")
        return Candidate(trial=trial, point=point, reason=reason)
    workers, devices = config.layout.num_workers, cluster.num_devices
    if workers > devices:
        return Candidate(
            trial=trial, point=point, config=config,
            reason=f"needs more workers than the cluster has: {workers} workers, {devices} devices",
        )  # fmt: skip
    try:
        check_supported(config)
        cost = estimate(config, cluster, calibration=calibration)
    except InfeasibleError as error:
        return Candidate(trial=trial, point=point, config=config, reason=error.message)
    note: str | None = None
    if traces is not None and _is_near_limit(cost):
        cost, note = _traced(config, cluster, calibration, cost, traces)
    return Candidate(
        trial=trial, point=point, config=config, cost=cost, memory_note=note,
        reason=". ".join(filter(None, (cost.reason, note))) if not cost.fits else None,
    )  # fmt: skip


def _is_near_limit(cost: CostEstimate) -> bool:
    lower, upper = _NEAR_LIMIT
    return lower <= cost.peak_memory_bytes / cost.memory_capacity_bytes <= upper


def _traced(
    config: TrialConfig,
    cluster: Cluster,
    calibration: Calibration | None,
    closed: CostEstimate,
    traces: Traces,
) -> tuple[CostEstimate, str]:
    """Return the cost with traced memory where there is a trace, and which figure it has."""
    # The closed form was held against accelerators' published memory, the trace against CPUs alone.
    unchecked = "traces are checked on CPUs alone"
    found = traces.memory_of(config) if cluster.device.is_cpu else unchecked
    if isinstance(found, str):
        return closed, f"Memory is by the closed form: {found}"
    cost = estimate(config, cluster, calibration=calibration, traced=found)
    return cost, (
        f"Memory is traced from the engine's own model: {format_bytes(cost.peak_memory_bytes)} "
        f"(closed form: {format_bytes(closed.peak_memory_bytes)})"
    )


def proposals(study: Study) -> Iterator[Point]:
    """Yield the points of grid or quasi-random search in their order."""
    if study.search.algorithm == "grid":
        return grid_points(study.search_space, study.base)
    return quasi_random_points(study.search_space, study.base, study.search.seed)


def plan(study: Study, *, measured: Measured | None = None, traces: Traces | None = None) -> Plan:
    """Return what a study would run, cost and reject.

    Args:
        study: The study.
        measured: What earlier runs on the same cluster measured (`results.read_measured`).
        traces: Traces memory where the closed form is near the limit; by default the closed form stands.

    Raises:
        ConfigError: The space has no finite grid, or the budget needs a price that is not known.
        InfeasibleError: Nothing in the space can run on the cluster.
        BudgetError: The budget cannot pay for the cheapest trial.
    """
    cluster = resolve_cluster(study.cluster)
    calibration = None if measured is None else measured.calibration
    candidates = _candidates(study, cluster, calibration, traces)
    feasible = [c for c in candidates if c.is_feasible]
    if not feasible:
        raise _nothing_fits(study, candidates)
    costs = [c.cost for c in feasible if c.cost is not None]
    _check_units(study, costs)
    total = sum((charge(cost) for cost in costs), Spend())
    seconds = _makespan(costs, cluster.num_devices, study.search.max_concurrent)
    total = Spend(
        flops=total.flops, device_hours=total.device_hours, usd=total.usd,
        seconds=seconds, kwh=total.kwh,
    )  # fmt: skip
    _check_affordable(study, costs)
    return Plan(
        study=study,
        cluster=cluster,
        candidates=tuple(candidates),
        total=total,
        is_sample=study.search.algorithm not in ("grid", "random"),
        calibrated_on=() if measured is None else measured.runs,
        num_memory_traces=0 if traces is None else traces.num_taken,
    )


def _candidates(
    study: Study, cluster: Cluster, calibration: Calibration | None, traces: Traces | None
) -> list[Candidate]:
    """Return proposals until enough of them are feasible or the space is exhausted."""
    wanted = study.search.num_trials
    found: list[Candidate] = []
    num_feasible = 0
    for index, point in enumerate(proposals(study)):
        if wanted is not None and (
            num_feasible >= wanted or index >= wanted * MAX_REJECTIONS_PER_TRIAL
        ):
            break
        found.append(
            candidate(
                study, cluster, f"t{index:03d}", point, calibration=calibration, traces=traces
            )
        )
        num_feasible += found[-1].is_feasible
    return found


def _nothing_fits(study: Study, candidates: Sequence[Candidate]) -> InfeasibleError:
    reasons = list(dict.fromkeys(c.reason for c in candidates if c.reason))
    shown = "\n".join(f"  {reason}" for reason in reasons[:3])
    return InfeasibleError(
        f"nothing in the search space {study.search_space.name!r} can run on the cluster: "
        f"{len(candidates)} points rejected, e.g.\n{shown}",
        hint="Widen the search space, or give a larger cluster.",
    )


def _check_units(study: Study, costs: Sequence[CostEstimate]) -> None:
    for unit in ("usd", "kwh"):
        missing = getattr(costs[0], unit) is None
        if missing and getattr(study.budget, unit) is not None:
            setting = "usd_per_device_hour" if unit == "usd" else "device_overrides.power_watts"
            raise ConfigError(
                f"a budget in {unit} needs to know what a device costs: cluster.device is "
                f"{study.cluster.device!r} and no {setting} is given.",
                hint=f"Set cluster.{setting} in the study.",
            )


def _check_affordable(study: Study, costs: Sequence[CostEstimate]) -> None:
    cheapest = min(costs, key=lambda cost: study.budget.spent_fraction(charge(cost)))
    field = study.budget.exceeded_by(charge(cheapest))
    if field is not None:
        need, have = getattr(charge(cheapest), field), study.budget.limits()[field]
        raise BudgetError(
            f"the budget must pay for at least one trial: the cheapest needs about "
            f"{format_amount(field, need)}, the budget is {format_amount(field, have)}.",
            hint=f"Raise budget.{field}, or make the trials smaller (train.tokens, model).",
        )


def _makespan(costs: Sequence[CostEstimate], num_devices: int, limit: int | None) -> float:
    """Return the wall-clock seconds of the trials started in order as devices become free.

    Work is placed by list scheduling: each trial waits until its workers are free.
    """
    running: list[tuple[float, int]] = []
    free, now = num_devices, 0.0
    for cost in costs:
        while free < cost.num_devices or len(running) >= (limit or num_devices):
            now, released = heapq.heappop(running)
            free += released
        free -= cost.num_devices
        heapq.heappush(running, (now + cost.startup_seconds + cost.train_seconds, cost.num_devices))
    return max((end for end, _ in running), default=0.0)


def varied_values(candidates: Sequence[Candidate]) -> dict[str, list[JsonValue]]:
    """Return the values of every parameter over the candidates, None where it is absent."""
    names = dict.fromkeys(itertools.chain.from_iterable(c.point for c in candidates))
    return {name: [c.point.get(name) for c in candidates] for name in names}
