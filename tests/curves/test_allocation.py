"""Optimal allocation against brute force, and under every limit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.curves import (
    ScalingLaw,
    allocation_for_loss,
    best_sizes,
    curve_forms,
    fit,
    max_tokens_by_deadline,
    optimal_allocation,
    overtraining_overhead,
    suggest,
)
from planner.curves.closed_forms import optimal_params
from planner.curves.repeated import PUBLISHED_REPETITION, predict_repeated
from planner.errors import ConfigError, FitError

BASE = (1.8, 480.0, 2100.0, 0.35, 0.37)


@pytest.fixture(scope="module")
def law(isoflop_sweep) -> ScalingLaw:
    return fit(isoflop_sweep(), num_bootstraps=100)


@given(
    st.floats(0.1, 0.8), st.floats(0.1, 0.8), st.floats(0, 12), st.floats(0, 12), st.floats(40, 60)
)
@settings(max_examples=30, deadline=None)
def test_the_closed_form_is_the_least_of_a_fine_grid(alpha, beta, log_a, log_b, log_c):
    params = np.array([[1.8, np.exp(log_a), np.exp(log_b), alpha, beta]])
    flops = float(np.exp(log_c))
    best = float(optimal_params(params, flops)[0])
    n = best * np.geomspace(0.1, 10, 2001)
    loss = curve_forms()["chinchilla"].predict(
        params, {"num_params": n, "num_tokens": flops / (6 * n)}
    )[0]
    assert abs(int(loss.argmin()) - 1000) <= 1


def test_the_budget_is_spent(law):
    a = optimal_allocation(law, 1e21)
    assert 6 * a.num_params * a.num_tokens == pytest.approx(1e21)
    assert a.num_params_lower < a.num_params < a.num_params_upper
    assert a.num_tokens_lower < a.num_tokens < a.num_tokens_upper
    assert a.loss_lower < a.loss < a.loss_upper
    assert a.binding == ()


def test_the_recommended_size_is_near_the_true_best(law):
    a = optimal_allocation(law, 3e21)
    true = float(optimal_params(np.array([BASE]), 3e21)[0])
    assert a.num_params == pytest.approx(true, rel=0.35)
    assert a.num_params_lower < true < a.num_params_upper


def test_little_data_makes_the_model_smaller_or_the_epochs_many(law):
    free = optimal_allocation(law, 1e21)
    tight = optimal_allocation(law, 1e21, unique_tokens=free.num_tokens / 20)
    assert tight.num_epochs > 1
    assert tight.binding == ("data",)
    assert tight.loss > free.loss


def test_repeats_cost_a_coupled_law_as_much_as_its_own_form_says(sweep):
    p = sweep(form="coupled", truth=(1.7, 900.0, 4000.0, 0.45, 0.5, 0.8), noise=0.0005)
    coupled = fit(p, form="coupled", num_bootstraps=20)
    free = optimal_allocation(coupled, 1e21)
    some = optimal_allocation(coupled, 1e21, unique_tokens=free.num_tokens / 1.2)
    few = optimal_allocation(coupled, 1e21, unique_tokens=free.num_tokens / 20)
    assert free.loss < some.loss < few.loss < 1.1 * free.loss


def test_a_draw_without_a_best_size_leaves_limits_and_suggestions_sound(sweep):
    plain = fit(sweep(), form="chinchilla", num_bootstraps=30)
    (part,) = plain.components
    draws = part.draws.copy()
    draws[3, 3], draws[4, 1] = -0.02, 0.0  # loss grows with size; the term of size vanished
    law = dataclasses.replace(plain, components=(dataclasses.replace(part, draws=draws),))
    whole, spoiled = (
        optimal_allocation(each, 1e21, unique_tokens=1e10, inference_tokens=1e11)
        for each in (plain, law)
    )
    assert spoiled.num_params == pytest.approx(whole.num_params)
    assert np.isfinite([spoiled.num_params_lower, spoiled.num_params_upper]).all()
    assert np.isfinite(suggest(law, 1e22, 1e21, 2).size_deviation_after)


def test_plenty_of_data_changes_nothing(law):
    free = optimal_allocation(law, 1e21)
    ample = optimal_allocation(law, 1e21, unique_tokens=1e15)
    assert ample.num_params == pytest.approx(free.num_params, rel=0.05)
    assert ample.num_epochs == 1.0
    assert ample.binding == ()


def test_demand_for_inference_makes_the_model_smaller(law):
    free = optimal_allocation(law, 1e21)
    served = optimal_allocation(law, 1e21, inference_tokens=1e12)
    assert served.num_params < free.num_params
    spent = 6 * served.num_params * served.num_tokens + 2 * served.num_params * 1e12
    assert spent == pytest.approx(1e21)
    assert "inference" in served.binding


def test_a_largest_size_binds_and_lengthens_training(law):
    a = optimal_allocation(law, 1e21, max_num_params=3e8)
    assert a.num_params == pytest.approx(3e8)
    assert a.num_tokens == pytest.approx(1e21 / (6 * 3e8))
    assert a.binding == ("max_num_params",)


def test_a_deadline_caps_tokens_and_buys_size(law):
    most = max_tokens_by_deadline(86400.0, 1.0, 5e4)
    a = optimal_allocation(law, 1e21, max_num_tokens=most)
    assert a.num_tokens == pytest.approx(most)
    assert a.num_params == pytest.approx(1e21 / (6 * most))
    assert a.binding == ("max_num_tokens",)


def test_the_cheapest_training_to_a_loss_reaches_it(law):
    target = optimal_allocation(law, 1e21).loss
    a = allocation_for_loss(law, target)
    assert a.loss == pytest.approx(target, rel=1e-3)
    assert a.train_flops == pytest.approx(1e21, rel=0.05)


def test_a_loss_below_the_irreducible_one_is_refused(law):
    with pytest.raises(FitError, match="irreducible"):
        allocation_for_loss(law, 0.3)


@pytest.mark.parametrize("bad", [0.0, -1e20, float("nan"), float("inf")])
def test_an_impossible_budget_is_refused(law, bad):
    for ask in (optimal_allocation, best_sizes):
        with pytest.raises(ConfigError, match="train_flops must be positive"):
            ask(law, bad)


@pytest.mark.parametrize("bad", [0.0, 1.0, 90.0])
def test_an_impossible_level_is_refused(law, bad):
    for ask in (optimal_allocation, best_sizes):
        with pytest.raises(ConfigError, match="level must lie between 0 and 1"):
            ask(law, 1e21, level=bad)


def test_closed_forms_refuse_what_is_not_positive():
    with pytest.raises(ConfigError, match="size_ratio must be positive"):
        overtraining_overhead(0.35, 0.37, -0.5)
    with pytest.raises(ConfigError, match="seconds_per_step must be positive"):
        max_tokens_by_deadline(86400.0, 0.0, 2e6)


def test_a_form_without_a_trade_off_says_which_has_one(isoflop_sweep):
    law = fit(isoflop_sweep(), form="compute", num_bootstraps=20)
    with pytest.raises(FitError, match="mixture"):
        optimal_allocation(law, 1e21)


def test_half_the_best_size_needs_far_more_tokens_for_the_same_loss():
    alpha, beta = BASE[3:]
    tokens, compute = overtraining_overhead(alpha, beta, 0.5)
    best = float(optimal_params(np.array([BASE]), 1e22)[0])
    predict = curve_forms()["chinchilla"].predict
    d = 1e22 / (6 * best)
    losses = predict(
        np.array([BASE]),
        {"num_params": np.array([best, best / 2]), "num_tokens": np.array([d, d * tokens])},
    )[0]
    assert losses[0] == pytest.approx(losses[1])
    assert compute == pytest.approx(0.5 * tokens)


def test_a_model_too_small_for_any_amount_of_data_is_refused():
    with pytest.raises(FitError, match="no amount of data"):
        overtraining_overhead(0.35, 0.37, 0.05)


def test_repeated_laws_allocate_with_their_own_constants(sweep):
    tokens = np.tile(np.repeat(np.geomspace(1e9, 1e11, 6), 6), 3)
    p = sweep(
        form="repeated",
        truth=(*BASE, 5.0, 6.0),
        copies=3,
        noise=0.001,
        unique_tokens=tokens / np.repeat([1.0, 4.0, 40.0], 36),
    )
    law = fit(p, form="repeated", num_bootstraps=30)
    a = optimal_allocation(law, 1e21, unique_tokens=2e9)
    assert a.binding == ("data",)
    at = {"num_params": a.num_params, "num_tokens": a.num_tokens, "unique_tokens": 2e9}
    at = {name: np.array([value]) for name, value in at.items()}
    own, published = (
        predict_repeated(np.array([[*BASE, *limits]]), at)[0, 0]
        for limits in ((5.0, 6.0), PUBLISHED_REPETITION)
    )
    assert a.loss == pytest.approx(own, rel=0.1 * abs(published / own - 1))


def test_terms_as_large_as_a_number_can_be_have_a_best_size():
    steep = (0.1, 1.5e308, 1e308, 1.3, 1.2)
    found = optimal_params(np.array([steep]), 1e21)[0]
    ratio = (1.3 * 1.5 / 1.2) ** (1 / 2.5)
    assert found == pytest.approx(ratio * (1e21 / 6) ** (1.2 / 2.5))
