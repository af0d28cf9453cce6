"""What every searcher, with every scheduler it goes with, does on every executor.

Simulated studies are drawn at random, 10^4 of them with `PLANNER_CONFORMANCE_STUDIES=10000`. The
same on real Ray is in `test_ray_executor`.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.budget import Budget, Spend
from planner.costs import ClusterConfig, estimate, resolve_cluster
from planner.planning import Candidate
from planner.search_space import Distribution, Point, SearchSpace
from planner.study import SUPPORTED_PAIRS, Objective, SchedulerConfig, SearchConfig, Study
from planner.trial import TrialConfig, TrialState
from planner.tuning import sweep
from planner.tuning.core import Sweep
from planner.tuning.inline import InlineExecutor
from planner.tuning.ledger import Line, read_lines
from planner.tuning.searchers import Searcher, make_searcher
from planner.tuning.simulated import SimulatedExecutor, simulate
from planner.tuning.sources import Timeline

MakeStudy = Callable[..., Study]

NUM_STUDIES = int(os.environ.get("PLANNER_CONFORMANCE_STUDIES", "800"))
PAIRS = [(a, s) for a, schedulers in SUPPORTED_PAIRS.items() for s in schedulers]
NUM_REPORTS, STARTUP_SECONDS, REPORT_SECONDS, SLOW = 5, 15 / 7, 10.0, 4.0
POPULATIONS = ("pbt", "pb2")
DECIDED_AT_LAUNCH = ("proposed", "started", "copied", "generation")

SPACE = SearchSpace(
    name="world",
    parameters={
        "rate": Distribution(loguniform=(1e-4, 1.0)),
        "depth": Distribution(choice=(1, 2, 4)),
        "kind": Distribution(choice=("plain", "wide", "odd")),
        "extra": Distribution(uniform=(0.0, 1.0), when="kind == 'odd'"),
    },
    constraints=("depth * rate <= 1.5",),
)
GRID = SearchSpace(
    name="grid",
    parameters=SPACE.parameters
    | {
        "rate": Distribution(choice=(1e-3, 1e-2, 1.0)),
        "extra": Distribution(choice=(0.1, 0.9), when="kind == 'odd'"),
    },
    constraints=SPACE.constraints,
)
CLUSTER = resolve_cluster(ClusterConfig(device="cpu", devices_per_node=1))


def _template(depth: int, num_workers: int) -> tuple[TrialConfig, Any]:
    data = {
        "model": {"num_layers": depth, "d_model": 16, "num_heads": 1},
        "batch": {"sequences_per_step": 4},
        "layout": {"data_parallel": num_workers},
        "train": {"tokens": 1000},
    }
    config = TrialConfig.model_validate(data)
    seconds = NUM_REPORTS * REPORT_SECONDS
    cost = replace(
        estimate(config, CLUSTER), train_flops=8.0 * depth, startup_seconds=STARTUP_SECONDS,
        train_seconds=seconds, device_hours=(seconds + STARTUP_SECONDS) * num_workers / 3600.0,
        num_devices=num_workers, usd=None, kwh=None, fits=True, reason=None,
    )  # fmt: skip
    return config, cost


TEMPLATES = {(d, w): _template(d, w) for d in (1, 2, 4) for w in (1, 2)}


@dataclass(frozen=True)
class World:
    """Trials of three sizes on one or two workers, some of which fail, diverge or are slow."""

    seed: int
    fault_fraction: float

    def price(self, trial: str, point: Point) -> Candidate:
        """Return the cost of a point, or that it breaks the constraint."""
        p: Any = point
        config, cost = TEMPLATES[p["depth"], 2 if p["kind"] == "wide" else 1]
        reason = SPACE.broken_constraint(point, {})
        return Candidate(trial=trial, point=point, config=config, cost=cost, reason=reason)

    def timeline(
        self, trial: str, point: Point, config: TrialConfig, report_at_flops: Sequence[float]
    ) -> Timeline:
        """Return how a point unfolds, which depends on the point and the seed alone."""
        p: Any = point
        chance = random.Random(f"{self.seed} {sorted(point.items())}")
        fault = chance.choice(["slow", "nan", "oom", "failed"])
        fault = fault if chance.random() < self.fault_fraction else ""
        whole = 8.0 * p["depth"]
        even = {whole * (i + 1) / NUM_REPORTS for i in range(NUM_REPORTS)}
        flops = sorted(even | {f for f in report_at_flops if f < whole})
        pace = REPORT_SECONDS * NUM_REPORTS / whole * (SLOW if fault == "slow" else 1.0)
        floor = 1.0 + (math.log10(p["rate"]) + 2.0) ** 2 + p.get("extra", 0.0) + 1.0 / p["depth"]
        losses = [floor + 3.0 * (f + 1.0) ** -0.5 for f in flops]
        end, reason = TrialState.COMPLETED, None
        if fault == "nan":
            losses[len(losses) // 2 :] = [math.nan] * (len(losses) - len(losses) // 2)
        elif fault:
            flops = flops[: len(flops) // 2] if fault != "slow" else flops
            end = {"oom": TrialState.OUT_OF_MEMORY, "failed": TrialState.FAILED}.get(fault, end)
            reason = fault
        return Timeline(
            seconds=[f * pace for f in flops], flops=flops, startup_seconds=STARTUP_SECONDS,
            reports=[{"val_loss": loss} for loss in losses[: len(flops)]], end=end, reason=reason,
        )  # fmt: skip


def study_of(
    algorithm: Any, scheduler: Any, *, seed: int = 0, num_trials: int = 6, num_devices: int = 2,
    max_concurrent: int | None = None, budget: Budget | None = None,
) -> Study:  # fmt: skip
    search = SearchConfig(
        algorithm=algorithm, num_trials=num_trials, seed=seed, max_concurrent=max_concurrent,
        max_retries=1,
        scheduler=SchedulerConfig(
            name=scheduler, reduction_factor=2.0, perturb=("rate",) if scheduler in POPULATIONS else (),
            interval_fraction=0.25,
        ),
    )  # fmt: skip
    return Study.model_construct(
        name="world", question="", search_space=GRID if algorithm == "grid" else SPACE, base={},
        objective=(Objective(),), constraints=(), search=search, budget=budget or Budget(seconds=1e6),
        cluster=ClusterConfig(device="cpu", devices_per_node=num_devices), target=None,
        overrides=(),
    )  # fmt: skip


def searcher_of(study: Study, world: World) -> Searcher:
    if study.search.algorithm == "cost_aware":
        from planner.tuning.cost_aware import CostAwareSearcher

        return CostAwareSearcher(study, price=world.price)
    return make_searcher(study)


def carried_out(
    study: Study, world: World, before: Sequence[Line] = ()
) -> tuple[Sweep, list[Line]]:
    """Return a simulated study at its end, and its ledger as it would be read from a file."""
    lines: list[Line] = []
    end = simulate(
        study, world, searcher=searcher_of(study, world), lines=before,
        write=lambda line, durable: lines.append(line),
    )  # fmt: skip
    return end, [*before, *json.loads(json.dumps(lines))]


def replayed(study: Study, world: World, lines: Sequence[Line]) -> tuple[Sweep, list[Line]]:
    written: list[Line] = []
    again = Sweep(
        study, resolve_cluster(study.cluster), searcher=searcher_of(study, world),
        write=lambda line, durable: written.append(dict(line)), price=world.price,
    )  # fmt: skip
    again.replay(lines)
    return again, written


def table(end: Sweep) -> list[tuple[Any, ...]]:
    found = []
    for r in end.trials.values():
        lineage = [replace(copy, study_seconds=0.0) for copy in r.lineage]  # a crash takes time
        found.append((r.trial, r.point, r.state, r.flops, r.last.get("val_loss"), lineage))
    return found


def check_order(study: Study, lines: Sequence[Line]) -> None:
    """Check that a ledger tells a possible story: who runs, who waits, who has ended."""
    is_now: dict[str, str] = {}
    reached: dict[str, float] = {}
    workers: dict[str, int] = {}
    most = study.search.max_concurrent or study.cluster.devices_per_node
    for line in lines:
        kind, trial = line["kind"], line.get("trial", "")
        if kind == "session":
            is_now = {t: "waits" if s == "runs" else s for t, s in is_now.items()}
        elif kind in ("proposed", "copied"):
            assert (kind == "proposed") == (trial not in is_now)
            assert is_now.get(trial, "waits") == "waits"
            is_now[trial] = "ended" if line["reason"] else "waits"
            layout = line.get("config", {}).get("layout", {})
            workers[trial] = layout.get("data_parallel", 1)
            if kind == "copied":
                reached[trial] = reached[line["donor"]]
        elif kind == "started":
            assert is_now[trial] == "waits"
            is_now[trial] = "runs"
            running = [t for t, s in is_now.items() if s == "runs"]
            assert sum(workers[t] for t in running) <= study.cluster.devices_per_node
            assert len(running) <= most
        elif kind == "report":
            assert is_now[trial] == "runs"
            assert line["metrics"]["train_flops"] > reached.get(trial, 0.0)
            reached[trial] = line["metrics"]["train_flops"]
        elif kind in ("paused", "lost"):
            assert is_now[trial] == "runs" or (kind == "paused" and is_now[trial] == "waits")
            is_now[trial] = "waits"
        elif kind == "ended":
            assert is_now[trial] in ("runs", "waits")
            is_now[trial] = "ended"


def check_points(study: Study, end: Sweep) -> None:
    """Check that every point is of the space, and that nothing ran that may not."""
    space = study.search_space
    for record in end.trials.values():
        assert record.point == space.active(record.point, {})
        assert all(space.parameters[n].contains(v) for n, v in record.point.items())
        needed = {n for n, d in space.parameters.items() if space.holds(d.when, record.point, {})}
        assert record.point.keys() == needed
        if record.attempts:
            assert SPACE.broken_constraint(record.point, {}) is None


def check_bill(study: Study, end: Sweep) -> None:
    """Check that every attempt is charged once, and the budget holds to one report."""
    attempts = [(r, a) for r in end.trials.values() for a in r.attempts]
    charged = sum((r.attempt_spend(a, end.now) for r, a in attempts), Spend())
    spent, devices = end.spend(), study.cluster.devices_per_node
    assert spent.device_hours == pytest.approx(charged.device_hours, abs=1e-9)
    assert spent.flops == pytest.approx(charged.flops)
    assert spent.device_hours <= end.now * devices / 3600 + 1e-9
    gap = STARTUP_SECONDS + REPORT_SECONDS * SLOW
    over = {"flops": devices * 32.0 / NUM_REPORTS, "device_hours": devices * gap / 3600}
    for field, limit in study.budget.limits().items():
        assert getattr(spent, field) <= limit + over.get(field, 0.0) + 1e-9


def check_next_decision(study: Study, world: World, lines: Sequence[Line], cut: int) -> None:
    """Check that a replay up to a decision of the core decides the same next."""
    line = lines[cut]
    again, written = replayed(study, world, lines[:cut])
    if line["kind"] in DECIDED_AT_LAUNCH and again.num_sessions:
        again.next_launch(line["t"])
        assert json.loads(json.dumps(written[0])) == line
    elif line["kind"] == "paused" or (line.get("reason") or "").startswith("not among"):
        again.begin(line["t"])
        assert written[1] == line


def check_resumed(study: Study, world: World, whole: Sweep, lines: list[Line], cut: int) -> None:
    """Check that a study that died after a line ends as it would have."""
    end, again = carried_out(study, world, lines[:cut])
    check_order(study, again)
    check_bill(study, end)
    ended = [line["trial"] for line in again if line["kind"] == "ended"]
    by_budget = {line["trial"] for line in again if line.get("by_budget")}
    assert len(set(ended)) == len(ended) or by_budget
    finished = [row for row in table(replayed(study, world, lines[:cut])[0]) if row[2].is_finished]
    assert all(row in table(end) or row[0] in by_budget for row in finished)
    learns_times = study.search.algorithm == "cost_aware"  # and the work that was lost took time
    if study.search.max_concurrent == 1 and study.budget.seconds == 1e6 and not learns_times:
        assert table(end) == table(whole)


BUDGETS = st.one_of(
    st.just(Budget(seconds=1e6)),
    st.floats(0.02, 0.3).map(lambda hours: Budget(device_hours=hours)),
    st.floats(60.0, 600.0).map(lambda seconds: Budget(seconds=seconds)),
    st.floats(20.0, 150.0).map(lambda flops: Budget(flops=flops)),
)


@pytest.mark.slow
@settings(
    max_examples=NUM_STUDIES, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip
@given(
    pair=st.sampled_from(PAIRS), seed=st.integers(0, 10**6), num_trials=st.integers(1, 14),
    num_devices=st.integers(1, 5), max_concurrent=st.sampled_from([None, None, 1, 2]),
    budget=BUDGETS, fault_fraction=st.sampled_from([0.0, 0.3, 1.0]), cut=st.floats(0, 1),
)  # fmt: skip
def test_whatever_a_study_meets_nothing_is_lost_and_a_replay_decides_the_same(
    pair: tuple[str, str], seed: int, num_trials: int, num_devices: int,
    max_concurrent: int | None, budget: Budget, fault_fraction: float, cut: float,
) -> None:  # fmt: skip
    study = study_of(
        *pair, seed=seed, num_trials=num_trials, num_devices=num_devices,
        max_concurrent=max_concurrent, budget=budget,
    )  # fmt: skip
    world = World(seed, fault_fraction)
    end, lines = carried_out(study, world)
    assert not end.running
    assert sum(r.state is not TrialState.INFEASIBLE for r in end.trials.values()) <= num_trials
    check_order(study, lines)
    check_points(study, end)
    check_bill(study, end)
    again, _ = replayed(study, world, lines)
    assert table(again) == table(end)
    assert again.spend() == end.spend()
    position = min(int(cut * len(lines)), len(lines) - 1)
    check_next_decision(study, world, lines, position)
    check_resumed(study, world, end, lines, position)


@pytest.mark.parametrize("seed", range(3))
def test_a_population_that_dies_while_it_meets_copies_as_it_would_have(seed: int) -> None:
    study = study_of("random", "pb2", seed=seed, num_trials=12)
    scheduler = study.search.scheduler.replace(quantile_fraction=0.5)
    search = study.search.model_copy(update={"scheduler": scheduler})
    study = study.model_copy(update={"search": search})
    world = World(seed, 0.0)
    _, lines = carried_out(study, world)
    for cut in range(1, len(lines)):
        if lines[cut - 1]["kind"] == lines[cut]["kind"] == "copied":
            again, written = replayed(study, world, lines[:cut])
            again.begin(lines[cut]["t"])
            again.next_launch(lines[cut]["t"])
            assert json.loads(json.dumps(written[1])) == lines[cut]


# The same decisions from every executor: here the simulator and this process.


@pytest.mark.parametrize(("algorithm", "scheduler"), PAIRS)
def test_this_process_and_the_simulator_decide_alike(
    algorithm: str, scheduler: str, make_study: MakeStudy, tmp_path: Path, trainers: Any
) -> None:
    study = trainers.small_study_of(make_study, algorithm, scheduler)
    here = sweep(study, executor=InlineExecutor(trainers.follow), name="here", root=tmp_path)
    executor = SimulatedExecutor(trainers.Followed())
    made_up = sweep(study, executor=executor, name="made-up", root=tmp_path)
    lines, others = (read_lines(results.folder.ledger) for results in (here, made_up))
    check_order(study, lines)
    if algorithm != "cost_aware":  # it learns from the time that trials really take
        assert trainers.decisions(lines) == trainers.decisions(others)
        assert [t.val_loss for t in here.trials] == [t.val_loss for t in made_up.trials]
    for results in (here, made_up):
        assert all(results.count(s) == 0 for s in (TrialState.RUNNING, TrialState.PLANNED))
        rates = [t.config["optimizer"]["learning_rate"] for t in results.trials]
        diverged = [t.state is TrialState.DIVERGED for t in results.trials]
        assert diverged == [rate > 5e-2 for rate in rates]
        hours = [t.device_hours for t in results.trials if t.device_hours]
        assert results.spend.device_hours == pytest.approx(sum(hours))
