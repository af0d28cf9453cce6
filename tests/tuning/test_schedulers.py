from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.study import SchedulerConfig, SearchConfig
from planner.tuning.records import Decision
from planner.tuning.schedulers import Asha, make_scheduler


def asha(**settings: object) -> Asha:
    return Asha(SchedulerConfig.model_validate({"name": "asha", **settings}))


@given(planned=st.floats(1e3, 1e24), factor=st.floats(1.1, 10), grace=st.floats(0, 1))
def test_rungs_rise_and_lie_between_the_grace_and_the_end(
    planned: float, factor: float, grace: float
) -> None:
    rungs = asha(reduction_factor=factor, grace_fraction=grace).rungs(planned)
    assert list(rungs) == sorted(set(rungs))
    assert all(grace * planned * (1 - 1e-6) <= rung < planned * (1 + 1e-6) for rung in rungs)


def test_trials_of_different_length_share_one_ladder() -> None:
    scheduler = asha(reduction_factor=2.0, grace_fraction=0.1)
    assert set(scheduler.rungs(1e9)) & set(scheduler.rungs(4e9))


def test_the_worse_of_two_is_stopped_at_their_common_rung() -> None:
    scheduler = asha(reduction_factor=2.0)
    assert scheduler.report("a", {}, 100.0, 64.0, 1.0) is Decision.CONTINUE
    assert scheduler.report("b", {}, 100.0, 64.0, 2.0) is Decision.STOP
    assert scheduler.report("c", {}, 100.0, 64.0, 0.5) is Decision.CONTINUE


def test_a_report_between_rungs_never_stops_a_trial() -> None:
    scheduler = asha(reduction_factor=2.0, grace_fraction=0.5)
    scheduler.report("a", {}, 100.0, 64.0, 1.0)
    assert scheduler.report("b", {}, 100.0, 63.0, 9.0) is Decision.CONTINUE


def test_a_loss_that_is_not_finite_does_not_pass_a_rung() -> None:
    scheduler = asha(reduction_factor=2.0)
    assert scheduler.report("a", {}, 100.0, 64.0, math.nan) is Decision.STOP
    assert scheduler.report("b", {}, 100.0, 64.0, 1.0) is Decision.CONTINUE


def test_trials_that_differ_in_a_named_parameter_are_not_compared() -> None:
    scheduler = asha(reduction_factor=2.0, within=("model",))
    small, large = {"model": {"num_layers": 1}}, {"model": {"num_layers": 2}}
    scheduler.report("a", small, 100.0, 64.0, 1.0)
    assert scheduler.report("b", large, 100.0, 64.0, 9.0) is Decision.CONTINUE
    assert scheduler.report("c", large, 100.0, 64.0, 10.0) is Decision.STOP


@given(
    losses=st.lists(st.floats(0, 10), min_size=1, max_size=60), factor=st.sampled_from([2, 3, 4])
)
def test_the_best_so_far_always_passes_and_about_one_in_the_factor_does(
    losses: list[float], factor: int
) -> None:
    scheduler = asha(reduction_factor=float(factor))
    rung = scheduler.rungs(100.0)[0]
    for i, loss in enumerate(losses):
        decision = scheduler.report(str(i), {}, 100.0, rung, loss)
        rank = sum(other < loss for other in losses[: i + 1])
        kept = max(1, (i + 1) // factor)
        assert (decision is Decision.CONTINUE) == (rank < kept)


def test_median_stops_what_is_worse_than_the_median_of_those_at_the_rung() -> None:
    scheduler = make_scheduler(SchedulerConfig(name="median", reduction_factor=2.0))
    first = [scheduler.report(str(i), {}, 100.0, 32.0, float(i)) for i in range(3)]
    assert first == [Decision.CONTINUE] * 3
    assert scheduler.report("worse", {}, 100.0, 32.0, 9.0) is Decision.STOP
    assert scheduler.report("better", {}, 100.0, 32.0, 0.5) is Decision.CONTINUE


def test_a_loss_that_is_not_finite_does_not_move_the_median() -> None:
    losses = [1.0, 2.0, 3.0, 4.0, math.nan, math.nan]
    answers = []
    for told in (losses, [loss for loss in losses if math.isfinite(loss)]):
        scheduler = make_scheduler(SchedulerConfig(name="median", reduction_factor=2.0))
        answers.append(
            [scheduler.report(str(i), {}, 100.0, 32.0, loss) for i, loss in enumerate([*told, 3.5])]
        )
    assert answers[0][-1] is answers[1][-1] is Decision.STOP


@pytest.mark.parametrize(("factor", "grace"), [(10.0, 0.001), (2.0, 0.125), (5.0, 0.04)])
def test_hyperband_has_a_bracket_for_every_power_between_its_grace_and_the_end(
    factor: float, grace: float
) -> None:
    config = SchedulerConfig(name="hyperband", reduction_factor=factor, grace_fraction=grace)
    scheduler = make_scheduler(config)
    ends = []  # each trial is worse than those before, so its first rung ends it
    for i in range(1500):
        rungs = scheduler.rungs(1e9)
        losses = [scheduler.report(str(i), {}, 1e9, rung, float(i)) for rung in rungs]
        ends.append(losses.index(Decision.STOP) if Decision.STOP in losses else len(rungs))
    assert len(set(ends[500:])) == round(-math.log(grace, factor)) + 1


def test_hyperband_gives_some_trials_a_longer_grace() -> None:
    config = SchedulerConfig(name="hyperband", reduction_factor=2.0, grace_fraction=0.1)
    scheduler = make_scheduler(config, seed=3)
    assert len(scheduler.rungs(1024.0)) == 3
    stopped_at = {128.0: 0, 256.0: 0, 512.0: 0}
    for i in range(300):
        for flops in stopped_at:
            if scheduler.report(f"t{i:03d}", {}, 1024.0, flops, 400.0 + i) is Decision.STOP:
                stopped_at[flops] += 1
                break
    assert stopped_at[128.0] > stopped_at[256.0] > stopped_at[512.0] > 0


@pytest.mark.parametrize("name", ["none", "asha", "hyperband", "bohb", "median"])
def test_the_same_reports_give_the_same_answers(name: str) -> None:
    config = SchedulerConfig.model_validate({"name": name})
    reports = [(str(i % 5), 20.0 + i, (i * 7919 % 13) / 3) for i in range(60)]

    def answers() -> list[Decision]:
        scheduler = make_scheduler(config)
        return [scheduler.report(t, {}, 100.0, flops, loss) for t, flops, loss in reports]

    assert answers() == answers()


@pytest.mark.parametrize(
    ("algorithm", "scheduler", "allowed"),
    [("cmaes", "asha", False), ("grid", "bohb", False), ("bayesian", "pbt", False),
     ("bayesian", "bohb", True), ("random", "hyperband", True)],
)  # fmt: skip
def test_pairs_that_do_not_go_together_are_refused(
    algorithm: str, scheduler: str, allowed: bool
) -> None:
    data = {"algorithm": algorithm, "num_trials": 4, "scheduler": {"name": scheduler}}
    if allowed:
        assert SearchConfig.model_validate(data).scheduler.name == scheduler
    else:
        with pytest.raises(ValueError, match=f"algorithm '{algorithm}' goes with scheduler"):
            SearchConfig.model_validate(data)
