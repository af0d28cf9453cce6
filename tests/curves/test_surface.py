"""The global fit of the reference law."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.curves import OBJECTIVES, fit_surface
from planner.curves.newton import SeparableProblem, minimize
from planner.curves.surface import tied_exponents

TRUTH = np.array([1.8, 480.0, 2100.0, 0.35, 0.37])


@pytest.mark.parametrize("objective", list(OBJECTIVES), ids=str)
def test_a_noiseless_surface_is_recovered_to_six_digits(sweep, objective):
    p = sweep(noise=0.0)
    fit = fit_surface(p.num_params, p.num_tokens, p.loss, objective=OBJECTIVES[objective])
    np.testing.assert_allclose(fit.params[0], TRUTH, rtol=1e-5)
    assert fit.objective[0] < 1e-12


def test_tied_exponents_are_equal(sweep):
    p = sweep()
    fit = fit_surface(p.num_params, p.num_tokens, p.loss, restriction=tied_exponents())
    assert fit.params[0, 3] == fit.params[0, 4]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num", [12, 30, 80, 200])
def test_no_random_start_finds_a_lower_objective(num, seed):
    generator = np.random.default_rng(seed)
    n, d = np.exp(generator.uniform(17, 22, num)), np.exp(generator.uniform(20, 25, num))
    loss = 1.8 + 480 / n**0.35 + 2100 / d**0.37
    loss *= np.exp(0.02 * generator.standard_t(3, num))
    found = fit_surface(n, d, loss).objective[0]
    x, y = np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean()
    top = np.log(loss.mean())
    unit = generator.random((300, 5))
    starts = np.array([top - 4, top - 4, top - 6, 0.02, 0.02]) + unit * [4, 4, 6, 1.5, 1.5]
    _, values = minimize(SeparableProblem(x, y, loss), starts, np.ones((300, num)))
    assert found <= np.nanmin(values) * (1 + 1e-9)


@given(st.floats(-8, 8), st.floats(-8, 8), st.floats(-2, 2), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_rescaling_size_tokens_and_loss_leaves_exponents_unchanged(log_k, log_l, log_m, seed):
    generator = np.random.default_rng(seed)
    n, d = np.exp(generator.uniform(17, 22, 40)), np.exp(generator.uniform(20, 25, 40))
    loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * np.exp(0.003 * generator.standard_normal(40))
    k, lam, mu = np.exp([log_k, log_l, log_m])
    one, other = fit_surface(n, d, loss), fit_surface(k * n, lam * d, mu * loss)
    assert other.objective[0] == pytest.approx(one.objective[0], rel=1e-6)
    if one.params[0, 0] > 0.3:
        np.testing.assert_allclose(one.params[0, 3:], other.params[0, 3:], rtol=1e-3)


def test_bootstrap_rows_equal_single_fits_of_repeated_points(sweep):
    p = sweep(noise=0.004, sizes=8, tokens=8)
    weights = np.random.default_rng(0).multinomial(64, np.full(64, 1 / 64), size=5).astype(float)
    together = fit_surface(p.num_params, p.num_tokens, p.loss, weights=weights)
    for row, params, value in zip(weights, together.params, together.objective, strict=True):
        rows = np.repeat(np.arange(64), row.astype(int))
        alone = fit_surface(p.num_params[rows], p.num_tokens[rows], p.loss[rows])
        assert value == pytest.approx(alone.objective[0], rel=1e-4)
        assert params[3] == pytest.approx(alone.params[0, 3], abs=5e-3)


@pytest.mark.slow
def test_a_million_points_are_fitted():
    generator = np.random.default_rng(0)
    n, d = np.exp(generator.uniform(17, 22, 10**6)), np.exp(generator.uniform(20, 25, 10**6))
    loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * np.exp(0.01 * generator.standard_normal(n.size))
    fit = fit_surface(n, d, loss, objective=OBJECTIVES["squared_log"])
    np.testing.assert_allclose(fit.params[0, 3:], [0.35, 0.37], atol=3e-3)
