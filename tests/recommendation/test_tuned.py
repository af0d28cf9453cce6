"""Reading the best learning rate and batch off swept trials."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from planner.budget import Budget
from planner.config import parse_config
from planner.curves import ScalingLaw
from planner.recommendation import recommend
from planner.recommendation.tuned import Row, swept_settings, tune
from planner.results import Results
from planner.trial import TrialConfig

BEST = 3e-3


def rows(
    exponent: float = 0.0, *, noise: float = 0.002, sizes: int = 4, seed: int = 0
) -> list[Row]:
    """Return a sweep of rates whose best one is BEST * (N / 1e6)^exponent."""
    generator = np.random.default_rng(seed)
    found = []
    for size in np.geomspace(1e5, 1e7, sizes):
        best = BEST * (size / 1e6) ** exponent
        for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
            excess = 0.02 * math.log(BEST * factor / best) ** 2 + noise * generator.normal()
            found.append(Row(num_params=float(size), value=BEST * factor, excess=excess))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_vertex_of_a_noisy_parabola_is_found(seed: int) -> None:
    found = tune("learning_rate", rows(seed=seed), best=9e-3)
    assert found.value == pytest.approx(BEST, rel=0.15)
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower < BEST < found.upper
    assert found.method in ("quadratic", "power law")


def test_a_best_rate_that_falls_with_size_gives_its_power_law() -> None:
    found = tune("learning_rate", rows(-0.35), best=9e-3)
    assert found.method == "power law"
    assert found.exponent == pytest.approx(-0.35, abs=0.08)
    assert found.at(1e6) == pytest.approx(BEST, rel=0.15)
    assert found.at(1e8) < found.at(1e7) < found.at(1e6)


def test_outliers_do_not_move_the_vertex() -> None:
    spoilt = [
        Row(num_params=r.num_params, value=r.value, excess=r.excess + 0.5 * (i % 7 == 3))
        for i, r in enumerate(rows())
    ]
    assert tune("learning_rate", spoilt, best=9e-3).value == pytest.approx(BEST, rel=0.2)


def test_losses_that_do_not_depend_on_the_rate_give_the_best_trials_value() -> None:
    generator = np.random.default_rng(1)
    flat = [
        Row(num_params=r.num_params, value=r.value, excess=0.001 * generator.normal())
        for r in rows()
    ]
    found = tune("learning_rate", flat, best=9e-3)
    assert (found.value, found.method) == (9e-3, "best trial")


def test_a_parabola_that_falls_to_the_edge_stays_in_the_tried_range() -> None:
    tilted = [
        Row(num_params=1e6, value=rate, excess=0.02 * math.log(rate / 1e-1) ** 2)
        for rate in np.geomspace(1e-4, 1e-2, 9)
    ]
    found = tune("learning_rate", tilted, best=1e-2)
    assert found.value == pytest.approx(1e-2)


def test_a_setting_with_one_value_is_the_studys_own() -> None:
    one = [Row(num_params=1e6, value=2048.0, excess=0.0)] * 8
    assert tune("tokens_per_step", one, best=2048.0).method == "study"


def test_the_synthetic_sweep_gives_its_best_rate(law: ScalingLaw, results: Results) -> None:
    found = recommend(law, Budget(flops=1e14), results.study, results=results)
    assert found.learning_rate.method in ("quadratic", "power law")
    assert found.choice.learning_rate == pytest.approx(4e-3, rel=0.3)


def test_rate_and_batch_swept_together_follow_the_law_of_both(results: Results) -> None:
    template = parse_config(results.trials[0].config, TrialConfig)
    trials, sizes = [], []
    generator = np.random.default_rng(0)
    for size, tokens in ((1e6, 2e7), (4e6, 8e7), (16e6, 3e8)):
        best_rate = 4e-3 * (size / 1e6) ** -0.3
        best_batch = 8.0 * (tokens / 2e7) ** 0.5
        for factor in (0.5, 0.7, 1.0, 1.4, 2.0):
            for sequences in (4, 8, 16, 32):
                rate = best_rate * factor
                excess = 0.02 * math.log(factor) ** 2
                excess += 0.01 * math.log(sequences / best_batch) ** 2
                loss = 3.0 * (size / 1e6) ** -0.05 * (1 + excess + 5e-4 * generator.normal())
                config = template.replace(
                    batch=template.batch.replace(sequences_per_step=sequences),
                    optimizer=template.optimizer.replace(learning_rate=rate),
                )
                trials.append(
                    (replace(results.trials[0], val_loss=loss, train_tokens=int(tokens)), config)
                )
                sizes.append(size)
    found = swept_settings(trials, sizes, 4e6, 8e7)
    assert found is not None
    rate, batch = found
    assert rate.value == pytest.approx(4e-3 * 4**-0.3, rel=0.1)
    assert rate.exponent < -0.1
    assert batch.value == pytest.approx(16 * 128, rel=0.2)
    assert rate.method == batch.method == "law of rate and batch"
    for setting, curvature in ((rate, 0.02), (batch, 0.01)):
        assert setting.lower is not None
        off = math.log(setting.value / setting.lower)
        assert curvature * off**2 == pytest.approx(0.0025, rel=0.2)


def test_a_sweep_of_the_rate_alone_has_no_law_of_both(results: Results) -> None:
    trials = [
        (trial, parse_config(trial.config, TrialConfig))
        for trial in results.trials
        if trial.val_loss
    ]
    assert swept_settings(trials, [1e6] * len(trials), 1e6, 1e8) is None
