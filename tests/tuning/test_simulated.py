from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from planner.budget import Budget
from planner.costs import resolve_cluster
from planner.errors import ConfigError
from planner.search_space import Point
from planner.study import SchedulerConfig, SearchConfig, Study
from planner.trial import TrialConfig, TrialState
from planner.tuning.core import Sweep
from planner.tuning.simulated import simulate
from planner.tuning.sources import LawSource, Pace, Timeline
from planner.tuning.tables import CurveTable

NAMES = ["rate", "decay"]
STEP_SECONDS = 10.0


def table_of(num_rows: int = 40, num_points: int = 8, seed: int = 0) -> CurveTable:
    """Return curves that fall towards a loss set by the row's distance from a point."""
    rng = np.random.default_rng(seed)
    values = np.stack([10 ** rng.uniform(-4, 0, num_rows), rng.random(num_rows)], axis=1)
    floor = 1.0 + (np.log10(values[:, 0]) + 2.0) ** 2 + values[:, 1]
    time = np.arange(1, num_points + 1)
    losses = floor[:, None] + 3.0 * time[None, :] ** -0.5
    losses[rng.random(num_rows) < 0.1, num_points // 2 :] = np.nan
    return CurveTable(NAMES, values, losses, STEP_SECONDS)


class Faulty(CurveTable):
    """A table some of whose rows run slower than priced, run out of memory or fail."""

    def __init__(self, table: CurveTable, slow: float, faults: Sequence[TrialState | None]) -> None:
        super().__init__(NAMES, table.values, table.losses, table.seconds_per_point)
        self.names = table.names
        self._slow, self._faults = slow, faults

    def timeline(
        self, trial: str, point: Point, config: TrialConfig, report_at_flops: Sequence[float]
    ) -> Timeline:
        whole = super().timeline(trial, point, config, report_at_flops)
        seconds = [s * self._slow for s in whole.seconds]
        fault = self._faults[self.row_of(point) % len(self._faults)]
        if fault is None:
            return replace(whole, seconds=seconds)
        half = len(seconds) // 2
        return Timeline(
            seconds=seconds[:half], flops=whole.flops[:half], reports=whole.reports[:half],
            end=fault, reason=str(fault),
        )  # fmt: skip


def study_of(
    table: CurveTable, *, scheduler: str = "asha", num_trials: int = 12, seed: int = 0,
    budget: Budget | None = None, num_workers: int = 2,
) -> Study:  # fmt: skip
    search = SearchConfig(
        algorithm="random", num_trials=num_trials, seed=seed,
        scheduler=SchedulerConfig(name=scheduler, grace_fraction=0.2),
    )  # fmt: skip
    study = table.study(search, seconds=1e6, num_workers=num_workers, rows=False)
    return study if budget is None else study.model_copy(update={"budget": budget})


def states(sweep: Sweep) -> list[tuple[str, TrialState, float]]:
    return [(r.trial, r.state, r.flops) for r in sweep.trials.values()]


def test_a_simulated_study_is_the_same_every_time_and_another_under_another_seed() -> None:
    table = table_of()
    first, again = (simulate(study_of(table), table) for _ in range(2))
    other = simulate(study_of(table, seed=1), table)
    assert first.reports == again.reports
    assert states(first) == states(again)
    assert [r.point for r in first.trials.values()] != [r.point for r in other.trials.values()]


def test_trials_run_side_by_side_and_take_the_time_of_their_source() -> None:
    table = table_of(num_points=4)
    table = CurveTable(NAMES, table.values, np.nan_to_num(table.losses, nan=9.0), STEP_SECONDS)
    sweep = simulate(study_of(table, scheduler="none", num_trials=4, num_workers=2), table)
    assert sweep.now == pytest.approx(2 * 4 * STEP_SECONDS)
    assert sweep.spend().device_hours == pytest.approx(4 * 4 * STEP_SECONDS / 3600)
    assert {r.state for r in sweep.trials.values()} == {TrialState.COMPLETED}


def test_a_curve_that_is_not_finite_is_a_divergence_at_that_point() -> None:
    table = table_of(num_rows=1)
    table = CurveTable(NAMES, table.values, np.array([[3.0, 2.0, np.nan, 1.0]]), STEP_SECONDS)
    study = table.study(
        SearchConfig(algorithm="grid"), seconds=1e6, num_workers=1, rows=True
    )  # fmt: skip
    sweep = simulate(study, table)
    (record,) = sweep.trials.values()
    assert (record.state, record.flops, record.last["val_loss"]) == (TrialState.DIVERGED, 3.0, 2.0)


def test_a_box_point_stands_for_the_nearest_row() -> None:
    table = table_of(num_rows=5)
    point = dict(zip(table.names, table.values[3].tolist(), strict=True))
    assert table.row_of(point) == 3
    assert table.row_of({"row": point}) == 3


def test_a_table_of_the_wrong_shape_is_refused_with_the_shapes() -> None:
    with pytest.raises(ConfigError, match=r"values \(3, 2\)"):
        CurveTable(["only"], np.ones((3, 2)), np.ones((3, 4)))


def test_looking_away_leaves_trials_running_and_charges_up_to_that_time() -> None:
    table = table_of()
    sweep = simulate(study_of(table, scheduler="none"), table, until_seconds=45.0)
    assert len(sweep.running) == 2
    assert max(line["t"] for line in sweep.reports) <= 45.0


def test_a_wall_clock_budget_ends_the_study_at_that_second() -> None:
    table = table_of()
    slow = Faulty(table, 3.0, [None])
    sweep = simulate(study_of(slow, scheduler="none", budget=Budget(seconds=100.0)), slow)
    assert sweep.now == 100.0
    assert any(r.by_budget for r in sweep.trials.values())


def test_a_rehearsal_spends_what_the_cost_model_says_and_finds_what_the_law_says(
    small_study: Study,
) -> None:
    cluster = resolve_cluster(small_study.cluster)

    def law(num_params: float, tokens: float) -> float:
        return 2.0 + 50.0 / num_params**0.5 + 30.0 / tokens**0.5

    source = LawSource(small_study, cluster, law)
    sweep = simulate(small_study, source)
    for record in sweep.trials.values():
        assert record.planned is not None
        assert record.elapsed_seconds(0.0) == pytest.approx(record.planned.seconds, abs=2e-3)
        size, tokens = record.num_params["num_params_non_embedding"], record.last["train_tokens"]
        expected = law(float(size or 0), float(tokens))
        assert record.last["val_loss"] == pytest.approx(expected)
        assert record.num_workers == 1
    slower = simulate(
        small_study, LawSource(small_study, cluster, law, pace=Pace(steps=((1.0, 2.0),)))
    )
    assert slower.spend().device_hours == pytest.approx(2 * sweep.spend().device_hours)
