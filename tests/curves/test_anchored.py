"""What the law with a prior makes of short trainings, and what back-tests make of the forms."""

from __future__ import annotations

import numpy as np
import pytest

from planner.curves import Backtest, curve_forms
from planner.curves.anchored import fit_anchored, point_weights
from planner.curves.forms import find_form, predict_surface
from planner.curves.mixture import extrapolation_error, mixture_weights
from planner.curves.surface import fit_surface

TRUTH = np.array([[1.8, 480.0, 2100.0, 0.35, 0.37]])


def _short_sweep() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trainings of 1e8 to 2e9 tokens, whose first few hundred million fall off steeply."""
    n, d = (
        axis.ravel() for axis in np.meshgrid(np.geomspace(5e7, 2e8, 5), np.geomspace(1e8, 2e9, 6))
    )
    law = predict_surface(TRUTH, {"num_params": n, "num_tokens": d})[0]
    return n, d, law + 0.8 * np.exp(-d / 3e8)


def test_a_steep_start_misleads_the_law_with_a_prior_three_times_less_than_the_free_one():
    n, d, loss = _short_sweep()
    far = {"num_params": np.array([1e9]), "num_tokens": np.array([2e10])}
    truth = predict_surface(TRUTH, far)[0, 0]
    anchored, _ = fit_anchored(n, d, loss, 6 * n * d)
    free = fit_surface(n, d, loss)
    off, free_off = (
        abs(float(np.log(predict_surface(p, far)[0, 0] / truth)))
        for p in (anchored.params, free.params)
    )
    assert off < 0.06
    assert off < free_off / 3


def test_short_and_lopsided_trainings_count_less_under_every_weighting():
    n = np.full(4, 5e8)
    d = np.array([1e8, 1e10, 1e12, 1e10])
    weights = point_weights(n, d, np.full(4, 1e20))
    assert (weights[:, 1] == weights[:, 3]).all()
    assert (weights[:, 0] < 0.05 * weights[:, 1]).all()
    assert (weights[:, 2] < weights[:, 1]).all()


def test_draws_surround_the_mean_law():
    n, d = (
        axis.ravel() for axis in np.meshgrid(np.geomspace(5e7, 2e9, 6), np.geomspace(1e9, 5e10, 6))
    )
    columns = {"num_params": n, "num_tokens": d}
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(n.size))
    loss = curve_forms()["chinchilla"].predict(TRUTH, columns)[0] * noise
    center, draws = fit_anchored(n, d, loss, 6 * n * d, num_draws=160)
    far = {"num_params": np.array([2e10]), "num_tokens": np.array([4e11])}
    low, high = np.quantile(predict_surface(draws, far), [0.05, 0.95])
    assert low < predict_surface(center.params, far)[0, 0] < high
    assert low < predict_surface(TRUTH, far)[0, 0] < high


def _backtest(form: str, ratio: float, error: float, expected: float | None = None) -> Backtest:
    return Backtest(
        form=form,
        train_max_flops=1e19,
        flops_ratio=ratio,
        num_train=20,
        num_test=10,
        median_error_fraction=error,
        expected_error_fraction=expected,
    )


def test_a_back_test_that_reaches_far_counts_more():
    forms = [find_form("anchored"), find_form("chinchilla")]
    shares = [
        mixture_weights(
            forms, [_backtest("anchored", ratio, 0.06), _backtest("chinchilla", ratio, 0.005)]
        )[1]
        for ratio in (1.5, 5.0, 30.0, 300.0)
    ]
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] == pytest.approx(shares[3])


def test_errors_that_were_foretold_do_not_widen_the_interval():
    foretold = extrapolation_error([_backtest("anchored", 10, 0.01, expected=0.02)])
    surprise = extrapolation_error([_backtest("anchored", 10, 0.04, expected=0.005)])
    assert foretold.growth < 0.002
    assert surprise.growth > 3 * foretold.growth
