from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.budget import Budget
from planner.planning import plan
from planner.run_folder import RunFolder
from planner.study import Study
from planner.trial import TrialResult, TrialState
from planner.tuning.core import Sweep
from planner.tuning.ledger import Line
from planner.tuning.outcome import results_of
from planner.tuning.records import Decision

MakeStudy = Callable[..., Study]
MakeSweep = Callable[..., tuple[Sweep, list[Line]]]

RATES = [1e-3, 2e-3, 4e-3, 8e-3]

ASHA = {
    "algorithm": "grid",
    "max_concurrent": 1,
    "scheduler": {"name": "asha", "reduction_factor": 2},
}


def launch_names(sweep: Sweep, now: float) -> list[str]:
    found = []
    while (launch := sweep.next_launch(now)) is not None:
        found.append(launch.trial)
    return found


def run_to_end(
    sweep: Sweep, losses: dict[str, float], seconds: float = 10.0, num_reports: int = 4
) -> None:
    """Run every trial in turn, each with reports that approach its loss."""
    now = sweep.now
    while (launch := sweep.next_launch(now)) is not None:
        trial = launch.trial
        sweep.workers_started(trial, now, sweep.trials[trial].flops)
        planned = sweep.trials[trial].planned_flops
        points = {planned * (i + 1) / num_reports for i in range(num_reports)}
        decision = Decision.CONTINUE
        for flops in sorted(points | set(launch.report_at_flops)):
            if flops <= sweep.trials[trial].flops:
                continue
            now += seconds / num_reports
            loss = losses.get(trial, 1.0) + 1 - flops / planned
            decision = sweep.report(trial, {"val_loss": loss, "train_flops": flops}, now)
            if decision is Decision.STOP:
                break
        if decision is Decision.CONTINUE:
            sweep.end(trial, result_of(trial, TrialState.COMPLETED), now)


def result_of(trial: str, state: TrialState, **values: Any) -> TrialResult:
    return TrialResult(trial=trial, config={}, state=state, **values)


def state_of(sweep: Sweep) -> list[TrialResult]:
    return [record.result(sweep.now) for record in sweep.trials.values()]


def test_a_grid_runs_exactly_what_the_plan_shows(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    study = make_study()
    sweep, _ = make_sweep(study)
    run_to_end(sweep, {})
    planned = [(c.trial, c.point) for c in plan(study).candidates]
    assert [(r.trial, r.point) for r in sweep.trials.values()] == planned
    assert all(r.state is TrialState.COMPLETED for r in sweep.trials.values())
    assert sweep.is_over(sweep.now)


def test_points_that_cannot_run_are_rows_and_do_not_count(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    space = {
        "name": "s",
        "parameters": {"layout.data_parallel": {"choice": [1, 2, 4]},
                       "optimizer.learning_rate": {"loguniform": [1e-3, 1e-2]}},
        "constraints": ["optimizer.learning_rate <= 5e-3"],
    }  # fmt: skip
    search = {"algorithm": "random", "num_trials": 6}
    sweep, _ = make_sweep(make_study(search_space=space, search=search))
    run_to_end(sweep, {})
    rows = state_of(sweep)
    rejected = [row for row in rows if row.state is TrialState.INFEASIBLE]
    assert len([row for row in rows if row.state is TrialState.COMPLETED]) == 6
    assert {(row.reason or "")[:5] for row in rejected} == {"needs", "break"}


def test_trials_run_side_by_side_as_devices_allow(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    space = {"name": "s", "parameters": {"layout.data_parallel": {"choice": [1, 2, 4]},
             "optimizer.learning_rate": {"choice": RATES[:2]}}}  # fmt: skip
    study = make_study(
        search_space=space, search={"algorithm": "grid"},
        cluster={"device": "cpu", "devices_per_node": 4},
    )  # fmt: skip
    sweep, _ = make_sweep(study)
    assert launch_names(sweep, 0.0) == ["t000", "t001", "t002"]
    workers = [record.num_workers for record in sweep.running]
    assert workers == [1, 1, 2]


def test_a_large_trial_is_not_passed_over_for_ever(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    parameters = {
        "optimizer.learning_rate": {"choice": [1e-3 * (i + 1) for i in range(20)]},
        "layout.data_parallel": {"choice": [1, 4], "when": "optimizer.learning_rate != 1e-3"},
    }
    study = make_study(
        search_space={"name": "s", "parameters": parameters}, search={"algorithm": "grid"},
        cluster={"device": "cpu", "devices_per_node": 4},
    )  # fmt: skip
    sweep, _ = make_sweep(study)
    started: list[str] = []
    running: list[str] = []
    for now in range(60):
        while (launch := sweep.next_launch(float(now))) is not None:
            started.append(launch.trial)
            running.append(launch.trial)
        if running:
            sweep.end(running.pop(0), result_of("", TrialState.COMPLETED), now + 0.5)
    large = next(r.trial for r in sweep.trials.values() if r.num_workers == 4)
    assert started.index(large) <= 13


def study_with_a_large_trial(make_study: MakeStudy, **changes: Any) -> Study:
    parameters = {
        "optimizer.learning_rate": {"choice": [1e-3 * (i + 1) for i in range(14)]},
        "layout.data_parallel": {"choice": [1, 4], "when": "optimizer.learning_rate == 2e-3"},
    }
    return make_study(
        search_space={"name": "s", "parameters": parameters}, search={"algorithm": "grid"},
        cluster={"device": "cpu", "devices_per_node": 4}, **changes,
    )  # fmt: skip


def test_devices_are_not_kept_free_for_a_trial_that_cannot_be_paid_for(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    study = study_with_a_large_trial(make_study)
    costs = [c.cost.device_hours for c in plan(study).candidates if c.cost]
    poor = study.replace(budget=Budget(device_hours=0.9 * max(costs)))
    sweep, _ = make_sweep(poor)
    running: list[str] = []
    side_by_side = []
    for now in range(14):
        running += launch_names(sweep, now * 1e-3)
        side_by_side.append(len(running))
        sweep.end(running.pop(0), result_of("", TrialState.COMPLETED), (now + 0.5) * 1e-3)
    assert side_by_side == [4] * 11 + [3, 2, 1]
    assert [r.num_workers for r in sweep.trials.values() if not r.state.is_finished] == [4]


def test_a_session_on_fewer_devices_runs_what_fits_them(
    make_study: MakeStudy, make_sweep: MakeSweep, tmp_path: Path
) -> None:
    study = study_with_a_large_trial(make_study)
    sweep, lines = make_sweep(study)
    launch_names(sweep, 0.0)
    again, _ = make_sweep(study, lines, num_devices=2)
    run_to_end(again, {})
    rows = results_of(again, RunFolder(tmp_path)).trials
    (left,) = [row for row in rows if row.state is not TrialState.COMPLETED]
    assert (left.state, left.num_workers) == (TrialState.PLANNED, 4)
    assert left.reason == "needs 4 workers, 2 devices are there"


def test_asha_stops_trials_and_the_rest_complete(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    sweep, _ = make_sweep(make_study(search=ASHA))
    run_to_end(sweep, {"t000": 1.0, "t001": 2.0, "t002": 3.0, "t003": 0.5})
    states = [record.state for record in sweep.trials.values()]
    assert states == [
        TrialState.COMPLETED, TrialState.STOPPED, TrialState.STOPPED, TrialState.COMPLETED,
    ]  # fmt: skip
    stopped = sweep.trials["t001"]
    assert 0 < stopped.fidelity < 1
    assert sweep.spend().flops < 4 * stopped.planned_flops


@pytest.mark.parametrize("loss", [math.nan, math.inf], ids=["nan", "inf"])
def test_a_loss_that_is_not_finite_makes_the_trial_diverged_and_is_charged(
    make_study: MakeStudy, make_sweep: MakeSweep, loss: float
) -> None:
    sweep, lines = make_sweep(make_study())
    sweep.next_launch(0.0)
    sweep.workers_started("t000", 1.0)
    decision = sweep.report("t000", {"val_loss": loss, "train_flops": 5.0}, 3.0)
    record = sweep.trials["t000"]
    assert decision is Decision.STOP
    assert record.state is TrialState.DIVERGED
    assert sweep.spend().device_hours == pytest.approx(2.0 / 3600)
    assert record.result(3.0).val_loss is None
    assert lines[-1]["reason"] == "val_loss is not finite"


def test_a_failed_attempt_is_retried_charged_and_at_last_given_up(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    search = {"algorithm": "grid", "max_concurrent": 1, "max_retries": 2}
    sweep, _ = make_sweep(make_study(search=search))
    for attempt in range(3):
        launch = sweep.next_launch(10.0 * attempt)
        assert launch is not None
        assert (launch.trial, launch.attempt) == ("t000", attempt + 1)
        sweep.workers_started("t000", 10.0 * attempt)
        sweep.lose("t000", "a node went away", 10.0 * attempt + 6)
    record = sweep.trials["t000"]
    assert record.state is TrialState.FAILED
    assert record.result(30.0).num_attempts == 3
    assert sweep.spend().device_hours == pytest.approx(18.0 / 3600)


def test_trials_that_all_fail_for_one_reason_end_the_study(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    sweep, lines = make_sweep(make_study())
    for now in range(3):
        launch = sweep.next_launch(float(now))
        assert launch is not None
        sweep.lose(launch.trial, "no such corpus", float(now), retry=False)
    assert sweep.give_up == "no such corpus"
    assert sweep.next_launch(4.0) is None
    assert sweep.is_over(4.0)

    again, _ = make_sweep(make_study(), lines)  # once the reason is put right
    launch = again.next_launch(again.now)
    assert launch is not None
    assert (launch.trial, launch.attempt) == ("t000", 2)


def test_the_budget_stops_what_runs_and_a_larger_one_lets_it_go_on(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    study = make_study(budget={"seconds": 25.0})
    sweep, lines = make_sweep(study)
    sweep.next_launch(0.0)
    sweep.workers_started("t000", 0.0)
    sweep.report("t000", {"val_loss": 2.0, "train_flops": 1e3}, 20.0)
    sweep.tick(25.0)
    record = sweep.trials["t000"]
    assert record.state is TrialState.STOPPED
    assert record.reason == "the budget of 25.0 s is spent"
    assert sweep.next_launch(26.0) is None

    again, _ = make_sweep(study, lines)
    assert again.trials["t000"].state is TrialState.STOPPED
    assert again.next_launch(again.now) is None

    more = Sweep(study, again.cluster, write=lambda line, durable: None)
    more.replay(lines)
    more.begin(more.now, added=Budget(seconds=100.0))
    launch = more.next_launch(more.now)
    assert launch is not None
    assert (launch.trial, launch.attempt) == ("t000", 2)


def test_a_trial_that_the_rest_of_the_budget_cannot_pay_is_not_started(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    cost = plan(make_study()).candidates[0].cost
    assert cost is not None
    sweep, _ = make_sweep(make_study(budget={"flops": 2.5 * cost.train_flops}))
    run_to_end(sweep, {})
    states = [record.state for record in sweep.trials.values()]
    assert states.count(TrialState.COMPLETED) == 2
    assert states.count(TrialState.PLANNED) == 2
    assert sweep.spend().flops == pytest.approx(2 * cost.train_flops)


def test_what_running_trials_still_need_is_set_aside(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    cost = plan(make_study()).candidates[0].cost
    assert cost is not None
    study = make_study(budget={"flops": 1.5 * cost.train_flops}, search={"algorithm": "grid"})
    sweep, _ = make_sweep(study)
    assert launch_names(sweep, 0.0) == ["t000"]


def lines_of_a_rich_run(study: Study, make_sweep: MakeSweep) -> list[Line]:
    sweep, lines = make_sweep(study)
    run_to_end(sweep, {"t000": 1.0, "t001": 2.0, "t002": 3.0, "t003": 0.5})
    return lines


def with_a_running_trial(study: Study, make_sweep: MakeSweep) -> tuple[Sweep, list[Line], float]:
    """Return a sweep whose t000 has begun, its lines, and the compute that t000 is planned to take."""
    sweep, lines = make_sweep(study)
    sweep.next_launch(0.0)
    sweep.workers_started("t000", 0.0)
    return sweep, lines, sweep.trials["t000"].planned_flops


def test_work_lost_in_a_crash_is_charged_up_to_the_last_line(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    study = make_study()
    sweep, lines, planned = with_a_running_trial(study, make_sweep)
    sweep.report("t000", {"val_loss": 2.0, "train_flops": planned / 4}, 10.0)
    sweep.heartbeat(16.0)
    again, _ = make_sweep(study, lines)
    assert again.spend().device_hours == pytest.approx(16.0 / 3600)
    assert again.spend().flops == pytest.approx(planned / 4 * 1.6)
    launch = again.next_launch(16.0)
    assert launch is not None
    assert (launch.trial, launch.attempt) == ("t000", 2)


def test_compute_that_only_a_checkpoint_tells_of_is_charged_once(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    study = make_study()
    _, lines, planned = with_a_running_trial(study, make_sweep)
    again, _ = make_sweep(study, lines)
    again.next_launch(5.0)
    again.workers_started("t000", 5.0, planned / 2)
    again.report("t000", {"val_loss": 2.0, "train_flops": planned}, 9.0)
    again.end("t000", result_of("t000", TrialState.COMPLETED), 9.0)
    assert again.spend().flops == pytest.approx(planned)


def test_work_that_is_charged_by_its_time_is_not_charged_again_by_a_later_checkpoint(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    study = make_study()
    sweep, lines, planned = with_a_running_trial(study, make_sweep)
    sweep.report("t000", {"val_loss": 2.0, "train_flops": planned / 4}, 10.0)
    sweep.heartbeat(16.0)
    again, further = make_sweep(study, lines)
    again.next_launch(16.0)  # and dies before its workers are up
    last, _ = make_sweep(study, lines + further)
    last.next_launch(17.0)
    last.workers_started("t000", 17.0, planned * 0.35)
    assert last.spend().flops == pytest.approx(planned / 4 * 1.6)


def test_a_stop_that_a_crash_cut_off_is_carried_out_on_resume(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    study = make_study(search=ASHA)
    lines = lines_of_a_rich_run(study, make_sweep)
    stop = next(i for i, line in enumerate(lines) if line.get("state") == "stopped")
    sweep, _ = make_sweep(study, lines[:stop])
    assert sweep.trials[lines[stop]["trial"]].state is TrialState.STOPPED


def test_events_of_a_trial_that_has_ended_change_nothing(
    make_study: MakeStudy, make_sweep: MakeSweep
) -> None:
    sweep, lines = make_sweep(make_study())
    sweep.next_launch(0.0)
    sweep.workers_started("t000", 0.0)
    sweep.end("t000", result_of("t000", TrialState.OUT_OF_MEMORY, reason="too large"), 1.0)
    count = len(lines)
    assert sweep.report("t000", {"val_loss": 1.0}, 2.0) is Decision.STOP
    sweep.end("t000", result_of("t000", TrialState.COMPLETED), 2.0)
    sweep.lose("t000", "late", 2.0)
    assert len(lines) == count
    assert sweep.trials["t000"].state is TrialState.OUT_OF_MEMORY
