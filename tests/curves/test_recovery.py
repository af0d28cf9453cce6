"""Every curve recovers known coefficients inside its intervals, under noise and outliers.

Tables and truths are those of benchmarks/recovery.py, which counts over many more seeds.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from planner.curves import Points, curve_forms, fit, fit_compression_curves, learning_curve_forms
from planner.curves.intervals import expanded_tail
from planner.errors import FitError

PATH = Path(__file__).parents[2] / "benchmarks" / "recovery_cases.py"
_SPEC = importlib.util.spec_from_file_location("recovery_cases", PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
recovery_cases = importlib.util.module_from_spec(_SPEC)
sys.modules["recovery_cases"] = recovery_cases
_SPEC.loader.exec_module(recovery_cases)

NUM_TABLES, NUM_DRAWS = 4, 30


def test_every_form_has_a_case():
    cases = set(recovery_cases.CASES)
    assert set(curve_forms()) <= cases
    assert {f"learning curve {form}" for form in learning_curve_forms()} <= cases


@pytest.mark.parametrize("name", recovery_cases.CASES, ids=str)
def test_the_intervals_hold_the_truth_about_as_often_as_they_say(name):
    case = recovery_cases.CASES[name]
    inside = [list(case.inside(seed, NUM_DRAWS).values()) for seed in range(NUM_TABLES)]
    # Coefficients of one table are right or wrong together: as many draws as there are tables.
    least = binom.ppf(0.01, NUM_TABLES, 0.9) / NUM_TABLES
    assert np.mean(inside) >= least, inside


def test_intervals_of_few_rows_are_wider_than_plain_quantiles():
    tails = [expanded_tail(0.9, rows, 5) for rows in (9, 36, 1000)]
    assert tails == sorted(tails)
    assert tails[0] < 0.001
    assert tails[2] == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize(
    ("form", "column"),
    [
        ("precision", "weight_bits"),
        ("precision", "activation_bits"),
        ("sparsity", "sparsity_fraction"),
        ("post-training-precision", "post_training_bits"),
    ],
)
def test_a_form_is_refused_where_its_own_column_never_varies(form, column):
    points = recovery_cases.sweep(form, 0)
    constant = np.full(len(points), getattr(points, column)[-1])
    with pytest.raises(FitError, match=rf"at least \d distinct {column}: got 1"):
        fit(dataclasses.replace(points, **{column: constant}), form=form)


def test_limits_of_repetition_are_refused_where_nothing_repeats():
    points = recovery_cases.sweep("repeated", 0)
    once = dataclasses.replace(points, unique_tokens=points.num_tokens)
    with pytest.raises(FitError, match="do not identify R_D"):
        fit(once, form="repeated")


def test_compute_alone_is_refused_with_two_budgets():
    n = np.tile([1e8, 2e8, 4e8, 8e8], 2)
    flops = np.repeat([1e18, 1e19], 4)
    points = Points(num_params=n, num_tokens=flops / (6 * n), loss=3 - 0.1 * np.log(flops / 1e18))
    with pytest.raises(FitError, match="at least 3 distinct compute_flops: got 2"):
        fit(points, form="compute")


def test_an_original_compressed_to_one_size_is_refused():
    n = np.repeat([1e8, 1e9], [6, 1])
    size = np.array([0.25, 0.4, 0.5, 0.7, 1.0, 2.0, 5.0]) * 1e8
    with pytest.raises(FitError, match="1e\\+09 parameters was measured at fewer than 2"):
        fit_compression_curves(n, size, np.linspace(4, 3, 7))


def test_an_asymptote_that_may_be_none_has_a_profile_that_is_open_below():
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e8, 1e9, 6), np.geomspace(2e9, 2e10, 6)))
    exact = 0.05 + 6 * (n / 1e8) ** -0.06 + 2 * (d / 2e9) ** -0.08
    loss = recovery_cases.noisy(exact, 3, 0.004)
    law = fit(Points(num_params=n, num_tokens=d, loss=loss), form="chinchilla", num_bootstraps=40)
    irreducible, a = law.coefficient("E"), law.coefficient("A")
    assert irreducible.lower is None
    assert irreducible.method == "profile"
    assert irreducible.upper is None or irreducible.upper > 0.05
    truth = 6 * 1e8**0.06
    assert (a.lower is None or a.lower < truth) and (a.upper is None or truth < a.upper)  # noqa: PT018
