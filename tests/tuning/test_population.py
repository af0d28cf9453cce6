from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.search_space import SearchSpace
from planner.study import SchedulerConfig, Study
from planner.trial import TrialState
from planner.tuning import resume, sweep
from planner.tuning.ledger import Line, read_lines
from planner.tuning.outcome import Progress
from planner.tuning.population import Population
from planner.tuning.records import Decision

MakeStudy = Callable[..., Study]

RATE = "optimizer.learning_rate"
SPACE: dict[str, Any] = {
    "parameters": {
        RATE: {"choice": [1e-5, 1e-4, 1e-3, 1e-2]},
        "layout.data_parallel": {"choice": [1, 2], "when": f"{RATE} == 1e-2"},
    },
}
SEARCH: dict[str, Any] = {
    "algorithm": "grid",
    "max_concurrent": 1,
    "scheduler": {
        "name": "pbt",
        "interval_fraction": 0.2,
        "quantile_fraction": 0.4,
    },
}


class Crash(BaseException):
    """What a test raises in the place of SIGKILL."""


def population_study(make_study: MakeStudy, *, workers: bool) -> Study:
    """Return a study of a population; `workers` lets copies change their number of workers."""
    parameters = SPACE["parameters"] if workers else {RATE: SPACE["parameters"][RATE]}
    perturb = [RATE, "layout.data_parallel"] if workers else [RATE]
    search = SEARCH | {"scheduler": SEARCH["scheduler"] | {"perturb": perturb}}
    base = make_study().base | {
        "train": {"tokens": 5120, "num_validations": 5, "validation_tokens": 256}
    }
    space = {"name": "members", "parameters": parameters}
    return make_study(search_space=space, search=search, base=base)


def test_members_pause_once_at_every_step() -> None:
    config = SchedulerConfig(name="pbt", interval_fraction=0.25, perturb=("x",))
    scheduler = Population(config, seed=0)
    answers = [scheduler.report("a", {}, 8.0, flops, 1.0) for flops in (1, 2, 2.5, 4, 5.9, 6, 7)]
    assert [answer is Decision.PAUSE for answer in answers] == [
        False, True, False, True, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("draw", range(20))
def test_a_change_stays_in_the_space_and_is_repeatable(draw: int) -> None:
    space = SearchSpace.model_validate(
        {
            "name": "s",
            "parameters": {
                "a": {"loguniform": (1e-3, 1e-2)},
                "b": {"choice": (1, 2, 4)},
                "c": {"choice": ("x", "y")},
                "d": {"randint": (1, 5)},
            },
        }
    )
    config = SchedulerConfig(name="pbt", perturb=("a", "b", "c", "d"))
    point = {"a": 9.9e-3, "b": 4, "c": "x", "d": 5}
    new = Population(config, seed=1).changed(space, {}, point, "t", draw)
    assert all(space.parameters[name].contains(value) for name, value in new.items())
    assert new["c"] == "y"
    assert new == Population(config, seed=1).changed(space, {}, point, "t", draw)


def moves(distribution: dict[str, Any], value: Any) -> set[Any]:
    """Return what copies of one value have instead."""
    space = SearchSpace.model_validate({"name": "s", "parameters": {"a": distribution}})
    population = Population(SchedulerConfig(name="pbt", perturb=("a",)), seed=0)
    return {population.changed(space, {}, {"a": value}, "t", draw)["a"] for draw in range(40)}


def test_what_moves_in_steps_moves_by_one_at_least() -> None:
    assert moves({"randint": (1, 64)}, 1) == {1, 2}
    assert moves({"lograndint": (1, 64)}, 2) == {1, 3}
    assert moves({"randint": (1, 64)}, 20) == {16, 25}
    assert moves({"uniform": (0.0, 1.0), "q": 0.25}, 0.5) == {0.25, 0.75}
    assert moves({"uniform": (-4.0, 4.0)}, -2.0) == {-2.5, -1.6}


def test_true_and_false_are_choices_and_no_numbers() -> None:
    assert moves({"choice": (True, False)}, True) == {False}


@pytest.mark.slow
def test_weak_members_copy_strong_ones_and_may_change_their_number_of_workers(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    results = sweep(population_study(make_study, workers=True), executor="inline", root=tmp_path)
    assert [trial.state for trial in results.trials] == [TrialState.COMPLETED] * 5
    lines = read_lines(results.folder.ledger)
    assert sum(line["kind"] == "generation" for line in lines) == 4
    copies = [line for line in lines if line["kind"] == "copied"]
    assert copies
    assert any(
        line["config"]["layout"]["data_parallel"]
        != lines_of_start(lines, line["donor"])["config"]["layout"]["data_parallel"]
        for line in copies
    )
    for trial in results.trials:
        points = [p for p in results.curves if p.trial == trial.trial]
        flops = [point.train_flops or 0.0 for point in points]
        assert flops == sorted(flops)
        assert len(points) == 5
    copied = {line["trial"] for line in copies}
    rows = {trial.trial: trial for trial in results.trials}
    assert all("copied t" in (rows[name].reason or "") for name in copied)
    assert results.spend.device_hours == pytest.approx(
        sum(trial.device_hours or 0.0 for trial in results.trials)
    )


def lines_of_start(lines: list[Line], trial: str) -> Line:
    return next(line for line in lines if line["kind"] == "proposed" and line["trial"] == trial)


@pytest.mark.parametrize(("name", "count"), [("pbt", 9), ("pb2", 4)])
def test_a_population_that_died_goes_on_to_the_same_end(
    make_study: MakeStudy, tmp_path: Path, name: str, count: int
) -> None:
    """After 9 events the next step is under way, after 4 the members are copying."""
    study = population_study(make_study, workers=False)
    scheduler = study.search.scheduler.replace(name=name)
    study = study.replace(search=study.search.replace(scheduler=scheduler))
    whole = sweep(study, executor="inline", name="whole", root=tmp_path)
    seen = []

    def crash(progress: Progress) -> None:
        seen.append(progress.event in ("paused", "copied", "generation"))
        if sum(seen) == count:
            raise Crash

    with pytest.raises(Crash):
        sweep(study, executor="inline", root=tmp_path, on_event=crash)
    resumed = resume("tiny", executor="inline", root=tmp_path)
    assert [(t.trial, t.val_loss, t.reason) for t in resumed.trials] == [
        (t.trial, t.val_loss, t.reason) for t in whole.trials
    ]
