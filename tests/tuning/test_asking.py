from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from planner.errors import ConfigError
from planner.search_space import quasi_random_points
from planner.study import Study
from planner.trial import TrialState
from planner.tuning.asking import OptunaSearcher
from planner.tuning.samplers import kind_of
from planner.tuning.searchers import Earlier, Outcome

MakeStudy = Callable[..., Study]

SPACE: dict[str, Any] = {
    "name": "s",
    "parameters": {
        "optimizer.learning_rate": {"loguniform": [1e-4, 1e-1]},
        "batch.sequences_per_step": {"choice": [4, 8, 16, 32]},
        "model": {"choice": [{"num_layers": 1, "d_model": 16}, {"num_layers": 2, "d_model": 32}]},
        "schedule.name": {"choice": ["wsd", "cosine"]},
        "schedule.decay_fraction": {"uniform": [0.1, 0.5], "when": "schedule.name == 'wsd'"},
        "schedule.warmup_fraction": {"uniform": [0.0, 0.2], "q": 0.05},
    },
}


def study_of(make_study: MakeStudy, algorithm: str, seed: int = 0) -> Study:
    search = {"algorithm": algorithm, "num_trials": 60, "seed": seed}
    return make_study(search_space=SPACE, search=search)


def loss_of(point: dict[str, Any]) -> float:
    rate = math.log10(point["optimizer.learning_rate"]) + 2.5
    return 1 + rate**2 + 0.1 * abs(math.log2(point["batch.sequences_per_step"] / 16))


def run(searcher: OptunaSearcher, count: int, start: int = 0) -> list[dict[str, Any]]:
    points = []
    for i in range(start, start + count):
        point = searcher.propose(f"t{i:03d}")
        assert point is not None
        points.append(point)
        loss, is_cut = loss_of(point), i % 3 == 2
        searcher.report(f"t{i:03d}", 0.3, loss + 0.5)
        state = TrialState.STOPPED if is_cut else TrialState.COMPLETED
        outcome = Outcome(state=state, loss=loss, fidelity=0.3 if is_cut else 1.0)
        searcher.end(f"t{i:03d}", outcome)
    return points


@pytest.mark.parametrize("algorithm", ["bayesian", "cmaes", "evolution"])
def test_points_lie_in_the_space_and_obey_its_conditions(
    make_study: MakeStudy, algorithm: str
) -> None:
    study = study_of(make_study, algorithm)
    for point in run(OptunaSearcher(study), 40):
        for name, value in point.items():
            assert study.search_space.parameters[name].contains(value), (name, value)
        assert ("schedule.decay_fraction" in point) == (point["schedule.name"] == "wsd")
        assert point["schedule.warmup_fraction"] * 20 == pytest.approx(
            round(point["schedule.warmup_fraction"] * 20)
        )


@pytest.mark.parametrize("algorithm", ["bayesian", "cmaes", "evolution"])
def test_the_same_seed_and_results_give_the_same_points(
    make_study: MakeStudy, algorithm: str
) -> None:
    first = run(OptunaSearcher(study_of(make_study, algorithm)), 30)
    assert run(OptunaSearcher(study_of(make_study, algorithm)), 30) == first
    assert run(OptunaSearcher(study_of(make_study, algorithm, seed=1)), 30) != first


def test_the_model_finds_good_rates_sooner_than_chance(make_study: MakeStudy) -> None:
    points = run(OptunaSearcher(study_of(make_study, "bayesian")), 60)
    losses = [loss_of(point) for point in points]
    assert sum(losses[30:]) / 30 < 0.7 * sum(losses[:10]) / 10


def wasted(make_study: MakeStudy, seed: int, as_constraint: bool) -> float:
    """Return the share of out-of-memory points after the first 20 where most points are such."""
    space = {
        "name": "layouts",
        "parameters": {
            "layout.tensor_parallel": {"choice": [1, 2, 4, 8]},
            "layout.pipeline_parallel": {"choice": [1, 2, 4, 8]},
            "layout.shard_parallel": {"choice": [1, 2, 4, 8]},
            "batch.micro_batch_sequences": {"choice": [1, 2, 4, 8, 16]},
            "batch.sequences_per_step": {"choice": [64, 128, 256, 512, 1024]},
        },
    }
    search = {"algorithm": "bayesian", "num_trials": 80, "seed": seed}
    searcher = OptunaSearcher(make_study(search_space=space, search=search))
    bad = []
    for i in range(80):
        point: Any = searcher.propose(f"t{i}")
        parts = [point[f"layout.{kind}_parallel"] for kind in ("tensor", "pipeline", "shard")]
        memory = 400 / math.prod(parts) + 6 * point["batch.micro_batch_sequences"] / parts[0]
        is_bad = memory > 24
        bad.append(is_bad)
        speed = point["batch.micro_batch_sequences"] / (1 + 0.1 * math.prod(parts))
        state = TrialState.COMPLETED
        if is_bad:
            state = TrialState.OUT_OF_MEMORY if as_constraint else TrialState.FAILED
        loss = None if is_bad else -speed
        searcher.end(f"t{i}", Outcome(state=state, loss=loss, fidelity=1.0))
    return sum(bad[20:]) / 60


def test_out_of_memory_told_as_a_constraint_wastes_few_trials(make_study: MakeStudy) -> None:
    told = [wasted(make_study, seed, True) for seed in range(5)]
    as_failures = [wasted(make_study, seed, False) for seed in range(5)]
    assert sorted(told)[2] < sorted(as_failures)[2]


@pytest.mark.parametrize("algorithm", ["bayesian", "cmaes", "evolution"])
@pytest.mark.parametrize("state", [TrialState.DIVERGED, TrialState.OUT_OF_MEMORY])
def test_a_trial_that_ends_badly_before_any_loss_is_known_is_not_taken_for_the_best(
    make_study: MakeStudy, algorithm: str, state: TrialState
) -> None:
    searcher = OptunaSearcher(study_of(make_study, algorithm))
    for number, outcome in enumerate(
        [
            Outcome(state=state, loss=None, fidelity=0.1),
            Outcome(state=TrialState.COMPLETED, loss=3.0, fidelity=1.0),
            Outcome(state=TrialState.COMPLETED, loss=4.0, fidelity=1.0),
            Outcome(state=state, loss=None, fidelity=0.1),
        ]
    ):
        searcher.propose(f"t{number}")
        searcher.end(f"t{number}", outcome)
    bad, *good, worse = [trial.value or 0.0 for trial in searcher._study.trials]
    can_run = state is TrialState.DIVERGED or algorithm == "cmaes"
    assert searcher._study.best_trial.number == 1
    assert worse > max(good)
    assert bad > min(good) or not can_run


def test_earlier_trials_say_what_is_bad(make_study: MakeStudy) -> None:
    study = study_of(make_study, "bayesian")
    point = next(quasi_random_points(study.search_space, study.base, 0))
    searcher = OptunaSearcher(study, [Earlier(point=point, costs=(5.0,))])
    searcher.propose("t0")
    searcher.end("t0", Outcome(state=TrialState.DIVERGED, loss=None, fidelity=0.1))
    assert [trial.value for trial in searcher._study.trials] == [5.0, 6.0]


def test_a_space_without_new_points_ends_the_search(make_study: MakeStudy) -> None:
    search = {"algorithm": "bayesian", "num_trials": 60}
    searcher = OptunaSearcher(make_study(search=search))
    found = []
    while (point := searcher.propose(f"t{len(found)}")) is not None:
        found.append(point["optimizer.learning_rate"])
        searcher.end(
            f"t{len(found) - 1}", Outcome(state=TrialState.COMPLETED, loss=1.0, fidelity=1.0)
        )
    assert len(found) == 4


INTERVALS: dict[str, Any] = {
    f"optimizer.{name}": {"uniform": [0.1, 0.9]} for name in ("beta1", "beta2", "weight_decay")
}


@pytest.mark.parametrize(
    ("parameters", "search", "kind"),
    [
        (INTERVALS, {}, "gp"),
        (INTERVALS, {"num_trials": 201}, "tpe"),
        (INTERVALS, {"scheduler": {"name": "asha"}}, "tpe"),
        (INTERVALS, {"sampler": "tpe"}, "tpe"),
        (INTERVALS | {"schedule.name": {"choice": ["wsd", "cosine"]}}, {}, "tpe"),
        (SPACE["parameters"], {"sampler": "gp"}, "gp"),
    ],
)
def test_the_gaussian_process_is_taken_for_small_spaces_of_intervals(
    make_study: MakeStudy, parameters: dict[str, Any], search: dict[str, Any], kind: str
) -> None:
    space = {"name": "s", "parameters": parameters}
    search = {"algorithm": "bayesian", "num_trials": 40} | search
    assert kind_of(make_study(search_space=space, search=search)) == kind


def test_the_gaussian_process_does_not_go_with_cuts(make_study: MakeStudy) -> None:
    search = {
        "algorithm": "bayesian", "num_trials": 4, "sampler": "gp", "scheduler": {"name": "asha"},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="sampler gp goes with scheduler none"):
        make_study(search_space=SPACE, search=search)
