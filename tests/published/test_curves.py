"""Numbers that follow from published scaling laws; each deviation is printed."""

from __future__ import annotations

import numpy as np
import pytest

from planner.curves import curve_forms
from planner.curves.anchored import PRIOR
from planner.curves.closed_forms import optimal_params
from planner.curves.repeated import MUENNIGHOFF_C4, effective_tokens

LAWS = {
    "Hoffmann et al. 2022": (1.69, 406.4, 410.7, 0.34, 0.28),
    "Besiroglu et al. 2024": (1.8172, 482.01, 2085.43, 0.3478, 0.3658),
    "Muennighoff et al. 2023": MUENNIGHOFF_C4,
}
EXPONENTS = {"Hoffmann et al. 2022": 0.46, "Besiroglu et al. 2024": 0.512}
"""Of the best size in compute, as the papers state it for approach 3 or its refit."""


@pytest.mark.parametrize("name", EXPONENTS, ids=str)
def test_the_exponent_of_the_best_size_is_that_of_the_paper_to_one_hundredth(name):
    params = np.array([LAWS[name]])
    low, high = (float(optimal_params(params, c)[0]) for c in (1e20, 1e24))
    slope = np.log(high / low) / np.log(1e4)
    print(f"{name}: exponent {slope:.4f}, published {EXPONENTS[name]}")
    assert slope == pytest.approx(EXPONENTS[name], abs=0.01)


@pytest.mark.parametrize("name", LAWS, ids=str)
def test_the_prior_holds_what_every_published_law_says(name):
    n, d = np.array([1e8, 1e9, 1e10]), np.array([2e9, 2e10, 2e11])
    params = np.array([LAWS[name]])
    log_loss = np.log(
        curve_forms()["chinchilla"].predict(params, {"num_params": n, "num_tokens": d})[0]
    )
    _, a, b, alpha, beta = LAWS[name]
    said = {
        "first_decade": log_loss[0] - log_loss[1],
        "second_decade": log_loss[1] - log_loss[2],
        "balance": np.log(a / 1e9**alpha) - np.log(b / 2e10**beta),
        "alpha": alpha,
        "beta": beta,
    }
    for quantity, value in said.items():
        mean, deviation = getattr(PRIOR, quantity)
        print(f"{name}: {quantity} {value:.3f}, prior {mean} +- {deviation}")
        assert abs(value - mean) < deviation


def test_four_epochs_are_nearly_as_good_as_fresh_data():
    share = float(effective_tokens(4e9, 1e9, 15.39)) / 4e9
    print(f"four epochs are worth {share:.3f} of fresh tokens")
    assert share == pytest.approx(0.93, abs=0.02)
