"""Calibrating speed with the run's own trials."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.budget import Budget
from planner.config import parse_config
from planner.costs import estimate, parse_cluster, resolve_cluster
from planner.curves import ScalingLaw
from planner.recommendation import Calibration, recommend
from planner.recommendation.speed import calibrate, speed_ratio
from planner.results import Results
from planner.trial import TrialConfig, TrialResult


def at_ratio(trial: TrialResult, results: Results, ratio: float, workers: int = 1) -> TrialResult:
    """Return the trial as if it had run at a ratio of the estimated speed."""
    config = parse_config(trial.config, TrialConfig)
    config = config.replace(layout=config.layout.replace(data_parallel=workers))
    cost = estimate(config, resolve_cluster(results.study.cluster))
    speed = ratio * config.tokens_per_step / cost.step_seconds
    return replace(
        trial, config=config.model_dump(mode="json"), num_workers=workers, tokens_per_second=speed
    )


def test_a_known_ratio_is_recovered_at_every_size(results: Results) -> None:
    cluster = resolve_cluster(results.study.cluster)
    trials = [at_ratio(trial, results, 0.6) for trial in results.trials[:15]]
    found = calibrate(trials, results.study.cluster, cluster)
    assert found.is_measured
    assert found.num_trials == 15
    assert found.ratios == pytest.approx([0.6] * len(found.ratios))
    assert speed_ratio(found, 3e9, 1) == pytest.approx(0.6)


def test_several_workers_have_a_factor_of_their_own(results: Results) -> None:
    cluster = resolve_cluster(results.study.cluster)
    trials = [at_ratio(trial, results, 0.6) for trial in results.trials[:10]]
    trials += [at_ratio(trial, results, 0.3, workers=2) for trial in results.trials[10:15]]
    found = calibrate(trials, results.study.cluster, cluster)
    assert found.multi_worker_factor == pytest.approx(0.5)
    assert found.num_workers == (1, 2)
    assert speed_ratio(found, 1e6, 2) == pytest.approx(0.3)


def test_another_device_is_not_calibrated(results: Results) -> None:
    other = resolve_cluster(parse_cluster("8xh100-sxm"))
    found = calibrate(results.trials, results.study.cluster, other)
    assert not found.is_measured
    assert "cpu" in found.note
    assert speed_ratio(found, 1e6, 1) == 1.0


def test_the_stated_time_is_at_the_measured_speed(law: ScalingLaw, results: Results) -> None:
    found = recommend(law, Budget(flops=1e15), results.study, results=results)
    row = found.choice
    cost = estimate(found.config, resolve_cluster(results.study.cluster))
    ratio = speed_ratio(found.calibration, row.num_params, row.num_workers)
    assert row.seconds == pytest.approx(cost.startup_seconds + cost.train_seconds / ratio, rel=1e-6)


def test_no_measured_trial_leaves_the_estimate() -> None:
    assert speed_ratio(Calibration(is_measured=False), 1e6, 4) == 1.0
