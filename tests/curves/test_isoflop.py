"""IsoFLOP profiles and the frontier through them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from planner.curves import (
    Points,
    best_sizes,
    fit,
    fit_frontier,
    isoflop_profiles,
    optimal_allocation,
)
from planner.curves.closed_forms import optimal_params
from planner.curves.isoflop import fit_size_line
from planner.errors import FitError

BASE = np.array([[1.8, 480.0, 2100.0, 0.35, 0.37]])


def test_vertices_lie_near_the_true_best_sizes(isoflop_sweep):
    for profile in isoflop_profiles(isoflop_sweep(noise=0.0)):
        true = float(optimal_params(BASE, profile.train_flops)[0])
        assert profile.refusal is None
        assert profile.best_num_params == pytest.approx(true, rel=0.1)


def test_the_frontier_has_the_exponent_of_the_law(isoflop_sweep):
    frontier = fit_frontier(isoflop_profiles(isoflop_sweep(noise=0.001)))
    assert frontier.slope == pytest.approx(0.37 / 0.72, abs=0.06)
    assert frontier.num_budgets == 5


def test_a_frontier_that_says_nothing_far_away_says_so_in_finite_numbers(isoflop_sweep):
    law = fit(isoflop_sweep(), num_bootstraps=30)
    wild = fit_size_line(np.log([1e18, 1.15e18, 1.3e18]), np.log([1e7, 3e9, 2e7]))
    rows = {
        row.method: row
        for row in best_sizes(dataclasses.replace(law, frontiers={"isoflop": wild}), 1e22)
    }
    low, high = rows["isoflop"].num_params_lower, rows["isoflop"].num_params_upper
    assert 0 < low < 1e-30
    assert 1e60 < high < np.inf


def test_the_frontier_grows_less_sure_with_distance(isoflop_sweep):
    frontier = fit_frontier(isoflop_profiles(isoflop_sweep()))
    assert frontier.log_best_params(1e24)[1] > frontier.log_best_params(1e19)[1]


@pytest.mark.parametrize(("off", "side"), [(30.0, "smaller"), (1 / 30, "larger")])
def test_a_minimum_outside_the_sizes_is_refused_with_the_side(isoflop_sweep, off, side):
    p = isoflop_sweep(off_center=off, noise=0.0)
    profiles = isoflop_profiles(p)
    assert all(profile.refusal is not None for profile in profiles)
    assert any(
        side in str(profile.refusal) or "concave" in str(profile.refusal) for profile in profiles
    )
    with pytest.raises(FitError, match="at least 3 budgets"):
        fit_frontier(profiles)


def test_repeats_of_the_best_size_do_not_stand_for_other_sizes():
    n = np.array([1e9] * 4 + [1e7, 1e8, 1e10, 1e11])
    loss = np.array([2.90, 2.901, 2.902, 2.899, 3.3, 3.0, 3.05, 3.4])
    p = Points(num_params=n, num_tokens=1e20 / 6 / n, loss=loss, train_flops=np.full(8, 1e20))
    (profile,) = isoflop_profiles(p)
    assert profile.refusal is None
    assert profile.best_num_params == pytest.approx(1e9, rel=0.5)


def test_a_concave_profile_is_refused():
    n = np.geomspace(1e8, 1e9, 6)
    loss = 3.0 - 0.05 * (np.log(n) - np.log(n).mean()) ** 2
    p = Points(num_params=n, num_tokens=1e19 / 6 / n, loss=loss, train_flops=np.full(6, 1e19))
    assert "concave" in str(isoflop_profiles(p)[0].refusal)


def test_a_table_without_budgets_has_no_frontier(sweep):
    law = fit(sweep(sizes=4, tokens=4), num_bootstraps=20)
    assert law.frontiers == {}
    assert "at least 3 budgets" in law.refusals["isoflop"]


def test_the_recommended_size_lies_between_the_two_methods(isoflop_sweep):
    law = fit(isoflop_sweep(seed=3), num_bootstraps=50)
    surface = float(np.log(optimal_params(law.components[0].params[None], 1e22)[0]))
    profile = law.frontiers["isoflop"].log_best_params(1e22)[0]
    log_size = np.log(optimal_allocation(law, 1e22).num_params)
    assert log_size == pytest.approx(0.5 * (surface + profile))
