"""The next trials."""

from __future__ import annotations

import numpy as np
import pytest

from planner.curves import Points, ScalingLaw, curve_forms, fit, optimal_allocation, suggest
from planner.errors import BudgetError, ConfigError

BASE = (1.8, 480.0, 2100.0, 0.35, 0.37)


@pytest.fixture(scope="module")
def law(isoflop_sweep) -> ScalingLaw:
    return fit(isoflop_sweep(budgets=(1e17, 3e17, 1e18)), num_bootstraps=200)


def test_the_design_costs_no_more_than_the_pilot_budget(law):
    s = suggest(law, 1e21, 1e19, 5)
    assert 1 <= len(s.trials) <= 5
    assert s.pilot_flops <= 1e19 * (1 + 1e-9)
    for t in s.trials:
        assert t.train_flops == pytest.approx(6 * t.num_params * t.num_tokens)
        assert t.train_flops >= 0.02 * law.fitted_range.train_flops[1]


def test_the_spread_is_expected_to_shrink_and_a_larger_budget_shrinks_it_more(law):
    small, large = suggest(law, 1e21, 1e18, 4), suggest(law, 1e21, 1e20, 4)
    for s in (small, large):
        assert s.loss_deviation_after < s.loss_deviation_before
        assert s.size_deviation_after < s.size_deviation_before
    assert large.loss_deviation_after < small.loss_deviation_after


def test_running_the_suggested_trials_narrows_the_interval(isoflop_sweep):
    law = fit(isoflop_sweep(budgets=(1e17, 3e17, 1e18)), num_bootstraps=1000)
    s = suggest(law, 1e21, 3e19, 5)
    n = np.array([t.num_params for t in s.trials])
    d = np.array([t.num_tokens for t in s.trials])
    loss = curve_forms()["chinchilla"].predict(
        np.array([BASE]), {"num_params": n, "num_tokens": d}
    )[0]
    p = isoflop_sweep(budgets=(1e17, 3e17, 1e18))
    more = Points(
        num_params=np.concatenate([p.num_params, n]),
        num_tokens=np.concatenate([p.num_tokens, d]),
        loss=np.concatenate([p.loss, loss]),
    )
    before = optimal_allocation(law, 1e21)
    after = optimal_allocation(fit(more, num_bootstraps=1000), 1e21)
    assert after.loss_upper - after.loss_lower < before.loss_upper - before.loss_lower


def test_a_budget_too_small_for_any_useful_run_is_refused(law):
    with pytest.raises(BudgetError, match="pilot budget"):
        suggest(law, 1e21, 1e12)


@pytest.mark.parametrize("bad", [(-1e21, 1e19, 5), (1e21, 0.0, 5), (1e21, 1e19, 0)])
def test_impossible_questions_are_refused(law, bad):
    with pytest.raises(ConfigError, match="must be positive"):
        suggest(law, *bad)
