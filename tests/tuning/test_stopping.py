"""Importances, the gain of another trial, and the search that stops when it does not pay."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.budget import Spend
from planner.results import Results
from planner.run_folder import RunFolder
from planner.search_space import quasi_random_points
from planner.study import Study, trial_config
from planner.trial import TrialResult, TrialState
from planner.tuning.importances import importances_of
from planner.tuning.search_summary import read_summary, summarise
from planner.tuning.searchers import Outcome, make_searcher
from planner.tuning.stopping import StoppingSearcher, expected_gain, gain_of

MakeStudy = Callable[..., Study]

SPACE: dict[str, Any] = {
    "name": "s",
    "parameters": {
        "optimizer.learning_rate": {"loguniform": [1e-4, 1e-1]},
        "optimizer.weight_decay": {"uniform": [0.0, 1.0]},
    },
}


def loss_of(point: dict[str, Any]) -> float:
    """Return a loss that the learning rate decides and the weight decay hardly."""
    rate = math.log10(point["optimizer.learning_rate"]) + 2.5
    return float(2 + rate**2 + 0.01 * point["optimizer.weight_decay"])


def study_of(make_study: MakeStudy, **changes: Any) -> Study:
    search = {"algorithm": "bayesian", "sampler": "tpe", "num_trials": 60} | changes
    return make_study(search_space=SPACE, search=search)


def results_of(study: Study, count: int, folder: Path, hours: float = 0.01) -> Results:
    """Return results of completed trials at points that fill the space."""
    points = quasi_random_points(study.search_space, study.base, seed=0)
    trials = []
    for i in range(count):
        point = next(points)
        trials.append(
            TrialResult(
                trial=f"t{i:03d}", config=trial_config(study, point).model_dump(mode="json"),
                state=TrialState.COMPLETED, val_loss=loss_of(point), device_hours=hours,
            )
        )  # fmt: skip
    run = RunFolder(folder)
    return Results(study=study, trials=tuple(trials), curves=(), spend=Spend(), folder=run)


def test_the_parameter_that_decides_is_named_with_the_trials_behind_it(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    results = results_of(study_of(make_study), 40, tmp_path)
    failed = replace(results.trials[0], state=TrialState.FAILED)
    found = importances_of(replace(results, trials=(*results.trials, failed)))
    assert found is not None
    assert found.num_trials == 40
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.shares["optimizer.learning_rate"] > 0.7


def test_a_parameter_that_only_one_trial_has_is_left_out_without_a_warning(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    momentum = {"choice": [0.9, 0.95], "when": "optimizer.weight_decay >= 0.98"}
    space = SPACE | {"parameters": SPACE["parameters"] | {"optimizer.beta1": momentum}}
    results = results_of(make_study(search_space=space), 12, tmp_path)
    conditions = [trial.config["optimizer"]["weight_decay"] >= 0.98 for trial in results.trials]
    assert sum(conditions) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = importances_of(results)
    assert found is not None
    assert set(found.shares) == {"optimizer.learning_rate", "optimizer.weight_decay"}


def test_equally_good_trials_decide_nothing(make_study: MakeStudy, tmp_path: Path) -> None:
    results = results_of(study_of(make_study), 12, tmp_path)
    same = tuple(replace(trial, val_loss=2.0) for trial in results.trials)
    assert importances_of(replace(results, trials=same)) is None


def test_nothing_is_said_before_ten_trials(make_study: MakeStudy, tmp_path: Path) -> None:
    results = results_of(study_of(make_study), 9, tmp_path)
    assert importances_of(results) is None
    assert gain_of(results) is None


def test_what_a_sweep_found_is_read_back_as_it_was_written(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    found = summarise(results_of(study_of(make_study), 12, tmp_path))
    folder = RunFolder(tmp_path)
    folder.write("search.json", found.to_json())
    assert found.gain is not None
    assert read_summary(folder) == found


def test_dear_trials_stop_paying_before_cheap_ones(make_study: MakeStudy, tmp_path: Path) -> None:
    study = study_of(make_study)
    cheap, dear = (gain_of(results_of(study, 30, tmp_path, hours)) for hours in (1e-6, 5.0))
    assert cheap is not None
    assert dear is not None
    assert cheap.gain == dear.gain > 0
    assert cheap.is_worth_it
    assert not dear.is_worth_it
    assert dear.cost_share == pytest.approx(0.5)
    assert "stopping here pays" in str(dear)


def test_the_expected_gain_falls_as_the_space_becomes_known(make_study: MakeStudy) -> None:
    study = study_of(make_study)
    points = quasi_random_points(study.search_space, study.base, seed=0)
    known = [next(points) for _ in range(60)]
    losses = [loss_of(point) for point in known]
    gains = [expected_gain(study, known[:n], losses[:n], 0.01) for n in (12, 60)]
    assert gains[0] is not None
    assert gains[1] is not None
    assert gains[1].gain < 0.5 * gains[0].gain


@pytest.mark.parametrize(("stop_when", "ends_early"), [("gain_below_cost", True), ("never", False)])
def test_a_search_ends_when_another_trial_does_not_pay_if_the_study_says_so(
    make_study: MakeStudy, stop_when: str, ends_early: bool
) -> None:
    study = study_of(make_study, stop_when=stop_when).replace(target={"device_hours": 5e-4})
    searcher = make_searcher(study)
    assert isinstance(searcher, StoppingSearcher) == ends_early
    count = 0
    while count < 40 and (point := searcher.propose(f"t{count}")) is not None:
        outcome = Outcome(state=TrialState.COMPLETED, loss=loss_of(point), fidelity=1.0)
        searcher.end(f"t{count}", outcome)
        count += 1
    assert (12 <= count < 40) == ends_early


def test_several_objectives_have_no_one_gain(make_study: MakeStudy) -> None:
    study = make_study(
        search_space=SPACE, objective=[{"metric": "val_loss"}, {"metric": "usd"}],
        search={"algorithm": "random", "num_trials": 20},
    )  # fmt: skip
    points = quasi_random_points(study.search_space, study.base, seed=0)
    known = [next(points) for _ in range(20)]
    assert expected_gain(study, known, [loss_of(p) for p in known], 0.01) is None
