"""A search that starts from the trials of former runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.costs import resolve_cluster
from planner.errors import ConfigError, NotFoundError
from planner.results import read_results
from planner.run_folder import RunFolder
from planner.search_space import grid_points
from planner.study import Study
from planner.tuning import resume, sweep
from planner.tuning.simulated import SimulatedExecutor
from planner.tuning.sources import LawSource
from planner.tuning.warm_start import gather_earlier, kept_earlier, point_of

MakeStudy = Callable[..., Study]

SPACE: dict[str, Any] = {
    "name": "sizes",
    "parameters": {
        "model": {"choice": [{"d_model": 16}, {"d_model": 32}, {"d_model": 64}]},
        "train.tokens": {"lograndint": [1000, 100000]},
    },
}


def study_of(make_study: MakeStudy, name: str, algorithm: str, **search: Any) -> Study:
    search = {"algorithm": algorithm, "num_trials": 12, "max_concurrent": 1} | search
    return make_study(name=name, search_space=SPACE, search=search)


def run(study: Study, root: Path) -> Any:
    source = LawSource(
        study, resolve_cluster(study.cluster), lambda size, tokens: 2 + 9 / size**0.3 + 9 / tokens**0.3
    )  # fmt: skip
    return sweep(study, executor=SimulatedExecutor(source), root=root)


@pytest.mark.parametrize("algorithm", ["bayesian", "cost_aware"])
def test_a_search_starts_from_earlier_runs_and_resumes_from_what_it_was_told(
    make_study: MakeStudy, tmp_path: Path, algorithm: str
) -> None:
    first = run(study_of(make_study, "first", "random"), tmp_path)
    study = study_of(make_study, "second", algorithm, earlier=["first"])
    second = run(study, tmp_path)
    kept = kept_earlier(second.folder)
    assert sorted(each.costs[0] for each in kept) == sorted(t.val_loss for t in first.trials)
    assert all(each.point["model"] in SPACE["parameters"]["model"]["choice"] for each in kept)
    assert RunFolder.open("second", tmp_path).load_study().search.earlier == ("first",)
    plain = run(study_of(make_study, "plain", algorithm), tmp_path)
    assert [t.config for t in plain.trials] != [t.config for t in second.trials]
    first.folder.results.unlink()
    source = LawSource(study, resolve_cluster(study.cluster), lambda size, tokens: 1.0)
    again = resume("second", executor=SimulatedExecutor(source), root=tmp_path)
    assert [t.config for t in again.trials] == [t.config for t in second.trials]


def test_an_earlier_run_must_exist_and_lie_in_the_space(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study = study_of(make_study, "second", "bayesian", earlier=["first"])
    with pytest.raises(NotFoundError, match="no run named 'first'"):
        gather_earlier(study, tmp_path)
    space = SPACE | {"parameters": {"train.tokens": {"choice": [200, 300]}}}
    other = make_study(name="first", search_space=space)
    run(other, tmp_path)
    with pytest.raises(ConfigError, match="none of the 2 trials of run 'first'"):
        gather_earlier(study, tmp_path)


@pytest.mark.parametrize(
    "parameters",
    [
        {"train.flops": {"choice": [1e8, 2e8]}},
        {"train.tokens_per_param": {"choice": [1.0, 2.0]}},
        {"train.tokens": {"choice": [1000, 2000]}},
        {"train": {"choice": [{"flops": 1e8}, {"tokens": 3000}]}},
    ],
    ids=lambda parameters: ", ".join(parameters),
)
def test_a_trial_is_known_by_what_the_search_chose_though_its_length_is_resolved(
    make_study: MakeStudy, tmp_path: Path, parameters: dict[str, Any]
) -> None:
    base = make_study().base | {"train": {"num_validations": 4}}
    study = make_study(
        name="first", base=base, search_space={"name": "lengths", "parameters": parameters}
    )
    results = read_results(run(study, tmp_path).folder)
    chosen = list(grid_points(study.search_space, study.base))
    assert [point_of(study, trial) for trial in results.trials] == chosen
    frame = results.to_frame()
    assert all(frame[name].nunique() == 2 for name in parameters)
    again = study.replace(
        search=study.search.replace(algorithm="bayesian", num_trials=2, earlier=["first"])
    )
    assert [each.point for each in gather_earlier(again, tmp_path)] == chosen


def test_searchers_that_do_not_learn_refuse_earlier_runs(make_study: MakeStudy) -> None:
    with pytest.raises(ConfigError, match="earlier goes with bayesian and cost_aware"):
        study_of(make_study, "second", "random", earlier=["first"])
