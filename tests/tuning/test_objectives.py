"""Several objectives and constraints: the study, the searchers, the front."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.costs import resolve_cluster
from planner.errors import ConfigError
from planner.objectives import MetricConstraint, Objective, costs_of
from planner.results import read_results
from planner.study import Study
from planner.trial import TrialResult, TrialState
from planner.tuning import sweep
from planner.tuning.asking import OptunaSearcher
from planner.tuning.core import Sweep
from planner.tuning.cost_aware import CostAwareSearcher
from planner.tuning.fronts import front_of, is_on_front
from planner.tuning.ledger import read_lines
from planner.tuning.search_summary import read_summary
from planner.tuning.searchers import Outcome, make_searcher
from planner.tuning.simulated import SimulatedExecutor
from planner.tuning.sources import LawSource

MakeStudy = Callable[..., Study]

TWO = [{"metric": "val_loss"}, {"metric": "device_hours"}]
PLANE: dict[str, Any] = {
    "name": "plane",
    "parameters": {
        "optimizer.learning_rate": {"loguniform": [1e-4, 1.0]},
        "optimizer.weight_decay": {"uniform": [0.0, 1.0]},
    },
}
SIZES: dict[str, Any] = {
    "name": "sizes",
    "parameters": {
        "model.d_model": {"choice": [16, 32, 64, 128]},
        "train.tokens": {"lograndint": [1000, 100000]},
    },
}


def law(num_params: float, num_tokens: float) -> float:
    return 1.7 + 400 / max(num_params, 1) ** 0.34 + 400 / num_tokens**0.28


@pytest.fixture
def run_sizes(make_study: MakeStudy, tmp_path: Path) -> Callable[..., Any]:
    """Return what runs a simulated study of sizes against time."""

    def run(algorithm: str, **changes: Any) -> Any:
        search = {"algorithm": algorithm, "num_trials": 12, "seed": 1}
        settings = {"search_space": SIZES, "objective": TWO, "search": search} | changes
        study = make_study(**settings)
        source = LawSource(study, resolve_cluster(study.cluster), law)
        return sweep(study, executor=SimulatedExecutor(source), root=tmp_path)

    return run


def test_one_objective_may_be_written_without_a_list(make_study: MakeStudy) -> None:
    alone, listed = (
        make_study(objective={"metric": "usd"}),
        make_study(objective=[{"metric": "usd"}]),
    )
    assert alone.objective == listed.objective == (Objective(metric="usd"),)


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({"algorithm": "cmaes", "num_trials": 4}, "'cmaes' has one objective"),
        ({"algorithm": "cost_aware", "num_trials": 4}, "'cost_aware' has one objective"),
        (
            {"algorithm": "bayesian", "num_trials": 4, "scheduler": {"name": "bohb"}},
            "'bohb' has one objective",
        ),
        (
            {"algorithm": "grid", "scheduler": {"name": "pbt", "perturb": ["model.d_model"]}},
            "'pbt' has one objective",
        ),
    ],
)
def test_methods_of_one_objective_refuse_several(
    make_study: MakeStudy, search: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        make_study(search_space=SIZES, objective=TWO, search=search)


def test_a_constraint_needs_a_bound_and_reads_units(make_study: MakeStudy) -> None:
    with pytest.raises(ConfigError, match="needs max, min or both"):
        make_study(constraints=[{"metric": "usd"}])
    study = make_study(constraints=[{"metric": "peak_memory_bytes", "max": "20 GiB"}])
    assert study.constraints[0].max == 20 * 2**30


@given(value=st.floats(-1e6, 1e6), low=st.floats(-1e3, 1e3), width=st.floats(0, 1e3))
def test_a_violation_is_positive_exactly_outside_the_bounds(
    value: float, low: float, width: float
) -> None:
    constraint = MetricConstraint(metric="usd", min=low, max=low + width)
    assert (constraint.violation(value) > 0) == (not low <= value <= low + width)


def test_what_grows_with_training_is_told_as_it_would_be_at_the_end() -> None:
    row = TrialResult(
        trial="t", config={}, state=TrialState.STOPPED, val_loss=3.0, device_hours=2.0
    )
    objectives = (Objective(), Objective(metric="device_hours"), Objective(metric="mfu"))
    assert costs_of(objectives[:2], row, 0.25) == (3.0, 8.0)
    assert costs_of(objectives, row) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(costs: list[tuple[int, int]]) -> None:
    import numpy as np

    found = is_on_front(np.array(costs, dtype=float))
    for mine, is_there in zip(costs, found, strict=True):
        beaten = any(a <= mine[0] and b <= mine[1] and (a, b) != mine for a, b in costs)
        assert is_there == (not beaten)


@pytest.mark.parametrize("algorithm", ["random", "evolution", "bayesian"])
def test_a_study_of_two_objectives_ends_with_its_front(
    run_sizes: Callable[..., Any], algorithm: str
) -> None:
    results = run_sizes(algorithm)
    front = front_of(read_results(results.folder))
    assert front is not None
    assert read_summary(results.folder).front == front
    losses, hours = zip(*front.values, strict=True)
    assert list(losses) == sorted(losses)
    assert list(hours) == sorted(hours, reverse=True)
    assert list(front.hypervolume) == sorted(front.hypervolume)
    assert list(front.spent_device_hours) == sorted(front.spent_device_hours)
    assert 0 < front.hypervolume[-1] < 1


@pytest.mark.parametrize("algorithm", ["evolution", "bayesian"])
def test_a_replayed_study_of_two_objectives_proposes_the_same_next(
    run_sizes: Callable[..., Any], algorithm: str
) -> None:
    results = run_sizes(algorithm, constraints=[{"metric": "device_hours", "max": 1e-6}])
    study = results.study
    again = []
    for _ in range(2):
        searcher = make_searcher(study)
        replayed = Sweep(
            study, resolve_cluster(study.cluster), write=lambda line, durable: None,
            searcher=searcher,
        )  # fmt: skip
        replayed.replay(read_lines(results.folder.ledger))
        again.append(searcher.propose("next"))
    assert again[0] == again[1] is not None


def test_a_trial_cut_by_its_loss_counts_for_the_search_but_not_for_the_front(
    run_sizes: Callable[..., Any],
) -> None:
    search = {
        "algorithm": "bayesian", "num_trials": 16, "scheduler": {"name": "asha"}, "max_concurrent": 1,
    }  # fmt: skip
    results = run_sizes("bayesian", search=search)
    stopped = [trial for trial in results.trials if trial.state is TrialState.STOPPED]
    front = front_of(results)
    assert stopped
    assert front is not None
    assert not {trial.trial for trial in stopped} & set(front.trials)
    assert front.num_compared == results.count(TrialState.COMPLETED)


def test_the_best_trial_keeps_the_constraints(run_sizes: Callable[..., Any]) -> None:
    results = run_sizes(
        "random", objective={"metric": "val_loss"},
        constraints=[{"metric": "num_params", "max": 60_000}],
    )  # fmt: skip
    best = results.best()
    assert best is not None
    assert best.num_params is not None
    assert best.num_params <= 60_000
    assert min(results.trials, key=lambda t: t.val_loss or math.inf).trial != best.trial


def told(study: Study, searcher: Any, count: int) -> list[dict[str, Any]]:
    """Return the points of a search for a low product where the rate may not exceed 0.01."""
    points = []
    for i in range(count):
        point: Any = searcher.propose(f"t{i}")
        points.append(point)
        rate, decay = math.log10(point["optimizer.learning_rate"]), point["optimizer.weight_decay"]
        costs = (decay - rate / 4, (decay - 0.7) ** 2 - rate / 4)[: len(study.objective)]
        row = TrialResult(
            trial="t", config={}, state=TrialState.COMPLETED,
            peak_memory_bytes=10.0 * 10 ** (rate + 2),
        )  # fmt: skip
        violations = tuple(c.violation(row.peak_memory_bytes or 0.0) for c in study.constraints)
        searcher.report(f"t{i}", 1.0, costs[0])
        outcome = Outcome(
            state=TrialState.COMPLETED, loss=costs[0], fidelity=1.0, costs=costs,
            violations=violations,
        )  # fmt: skip
        searcher.end(f"t{i}", outcome)
    return points


@pytest.mark.parametrize(
    ("algorithm", "sampler", "num_objectives"),
    [("bayesian", "tpe", 1), ("bayesian", "tpe", 2), ("bayesian", "gp", 2), ("evolution", "auto", 2),
     ("cost_aware", "auto", 1)],
)  # fmt: skip
def test_a_measured_constraint_keeps_the_search_where_it_holds(
    make_study: MakeStudy, algorithm: str, sampler: str, num_objectives: int
) -> None:
    count = 18 if sampler == "gp" else 60
    objective = [{"metric": "val_loss"}, {"metric": "mfu"}][:num_objectives]
    search = {"algorithm": algorithm, "sampler": sampler, "num_trials": count}

    def broken(*constraints: dict[str, Any]) -> float:
        study = make_study(
            search_space=PLANE, objective=objective, search=search, constraints=list(constraints)
        )
        searcher: Any = OptunaSearcher(study)
        if algorithm == "cost_aware":
            searcher = CostAwareSearcher(study, use_law=False)
        rates = [p["optimizer.learning_rate"] for p in told(study, searcher, count)[count // 2 :]]
        return sum(rate > 0.01 for rate in rates) / len(rates)

    assert broken({"metric": "peak_memory_bytes", "max": 10.0}) < broken() - 0.2
