"""BOHB: the model is of the largest rung that enough trials have reached."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from planner.errors import ConfigError
from planner.study import Study
from planner.trial import TrialState
from planner.tuning.bohb import BohbSearcher
from planner.tuning.searchers import Outcome, make_searcher

MakeStudy = Callable[..., Study]

SPACE: dict[str, Any] = {
    "name": "s",
    "parameters": {
        "optimizer.learning_rate": {"loguniform": [1e-4, 1e-1]},
        "optimizer.weight_decay": {"uniform": [0.0, 1.0]},
    },
}


def searcher_of(make_study: MakeStudy, seed: int = 0) -> BohbSearcher:
    scheduler = {"name": "bohb", "reduction_factor": 2.0}
    search = {"algorithm": "bayesian", "num_trials": 90, "seed": seed, "scheduler": scheduler}
    found = make_searcher(make_study(search_space=SPACE, search=search))
    assert isinstance(found, BohbSearcher)
    return found


def test_only_the_parzen_estimator_goes_with_bohb(make_study: MakeStudy) -> None:
    search = {"algorithm": "cost_aware", "num_trials": 4, "scheduler": {"name": "bohb"}}
    with pytest.raises(ConfigError, match="goes with scheduler"):
        make_study(search_space=SPACE, search=search)


def test_the_model_moves_up_as_soon_as_a_larger_rung_has_enough(make_study: MakeStudy) -> None:
    searcher = searcher_of(make_study)
    levels = []
    for i in range(12):
        searcher.propose(f"t{i}")
        searcher.report(f"t{i}", 0.25, 2.0 - i / 100)
        if i % 2:
            searcher.report(f"t{i}", 0.5, 1.0 - i / 100)
        levels.append(searcher._level())
    assert levels[:4] == [None] * 4
    assert levels[4:9] == [-2] * 5
    assert levels[9:] == [-1] * 3


def share_near(make_study: MakeStudy, seed: int, last: float) -> float:
    """Return the share of late proposals near the rate that is best at the last report.

    At a quarter of the compute small rates look best, at half of it large ones do.
    """
    searcher = searcher_of(make_study, seed)
    near = []
    for i in range(60):
        point: Any = searcher.propose(f"t{i}")
        rate = math.log10(point["optimizer.learning_rate"])
        searcher.report(f"t{i}", 0.25, (rate + 3.5) ** 2)
        if last > 0.25:
            searcher.report(f"t{i}", last, (rate + 1.5) ** 2)
        searcher.end(
            f"t{i}", Outcome(state=TrialState.STOPPED, loss=(rate + 1.5) ** 2, fidelity=last)
        )
        near.append(abs(rate + 1.5) < 0.5)
    return sum(near[20:]) / 40


def test_proposals_follow_the_losses_of_the_larger_rung(make_study: MakeStudy) -> None:
    high = sorted(share_near(make_study, seed, 0.5) for seed in range(3))
    low = sorted(share_near(make_study, seed, 0.25) for seed in range(3))
    assert high[1] > 0.5 > low[1]


def test_points_that_cannot_run_are_avoided(make_study: MakeStudy) -> None:
    searcher = searcher_of(make_study)
    bad = []
    for i in range(60):
        point: Any = searcher.propose(f"t{i}")
        is_bad = point["optimizer.weight_decay"] > 0.3
        bad.append(is_bad)
        state = TrialState.OUT_OF_MEMORY if is_bad else TrialState.COMPLETED
        loss = None if is_bad else 1.0 - point["optimizer.weight_decay"]
        searcher.end(f"t{i}", Outcome(state=state, loss=loss, fidelity=1.0))
    assert sum(bad[30:]) / 30 < 0.55


def test_the_same_seed_and_results_give_the_same_points(make_study: MakeStudy) -> None:
    def points(seed: int) -> list[Any]:
        searcher, found = searcher_of(make_study, seed), []
        for i in range(12):
            found.append(searcher.propose(f"t{i}"))
            searcher.report(f"t{i}", 0.5, float(i % 5))
        return found

    assert points(0) == points(0) != points(1)
