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

from planner.curves import (
    Coefficient,
    Points,
    curve_forms,
    fit,
    fit_compression_curves,
    fit_schedule_law,
    learning_curve_forms,
)
from planner.curves.intervals import expanded_tail, has_flat_direction, resampling_counts
from planner.curves.problem import form_problem, minimize
from planner.curves.surface import OBJECTIVES
from planner.errors import FitError

PATH = Path(__file__).parents[2] / "benchmarks" / "recovery_cases.py"
_SPEC = importlib.util.spec_from_file_location("recovery_cases", PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
recovery_cases = importlib.util.module_from_spec(_SPEC)
sys.modules["recovery_cases"] = recovery_cases
_SPEC.loader.exec_module(recovery_cases)

NUM_TABLES, NUM_DRAWS = 4, 30
WITH_PROFILES = ("sparsity", "schedule law", "chinchilla, flat")
"""Half as many tables: their intervals are often those of profiles, which take seconds."""


def test_every_form_has_a_case():
    cases = set(recovery_cases.CASES)
    assert set(curve_forms()) <= cases
    assert {f"learning curve {form}" for form in learning_curve_forms()} <= cases


@pytest.mark.parametrize("name", recovery_cases.CASES, ids=str)
def test_the_intervals_hold_the_truth_about_as_often_as_they_say(name):
    case = recovery_cases.CASES[name]
    num_tables = NUM_TABLES // (2 if name in WITH_PROFILES else 1)
    inside = [list(case.inside(seed, NUM_DRAWS).values()) for seed in range(num_tables)]
    # Coefficients of one table are right or wrong together: as many draws as there are tables.
    least = binom.ppf(0.01, num_tables, 0.9) / num_tables
    assert np.mean(inside) >= least, inside


def test_intervals_of_few_rows_are_wider_than_plain_quantiles():
    tails = [expanded_tail(0.9, rows, 5) for rows in (9, 36, 1000)]
    assert tails == sorted(tails)
    assert tails[0] < 0.001
    assert tails[2] == pytest.approx(0.05, abs=0.002)


def test_a_schedule_law_without_noise_is_recovered_though_the_schedule_is_cut(monkeypatch):
    monkeypatch.setattr(recovery_cases, "OUTLIER_SHARE", 0.0)
    traces = [recovery_cases.trace(rate, 0, noise=0.0) for rate in recovery_cases.SCHEDULES]
    law = fit_schedule_law(traces, num_bootstraps=0)
    found = {c.name: c.value for c in law.coefficients}
    assert found == pytest.approx(recovery_cases.CASES["schedule law"].truth, rel=1e-3)


def test_a_bootstrap_goes_to_the_end_of_a_curved_valley():
    points = recovery_cases.sweep("sparsity", 1)
    problem, theta = form_problem(curve_forms()["sparsity"], points, OBJECTIVES["huber_log"], {})
    counts = resampling_counts(len(points), 12, 1)
    begin = np.repeat(theta[:1], 12, axis=0)
    draws, reached = minimize(problem, begin, counts, OBJECTIVES["huber_log"].delta)
    _, further = minimize(problem, draws, counts, OBJECTIVES["huber_log"].delta)
    assert (reached - further <= 1e-3 * reached).all()


@pytest.mark.parametrize(
    ("lower", "upper", "is_flat"),
    [(0.1, 10.0, False), (0.5, 4.0, False), (0.99, 10.0, True), (1e-9, 1.5, True), (None, 2, True)],
)
def test_an_interval_that_lies_almost_all_to_one_side_shows_a_flat_direction(lower, upper, is_flat):
    found = Coefficient(
        name="c", value=1.0, lower=lower, upper=upper, level=0.9, method="bootstrap"
    )
    assert has_flat_direction([found]) is is_flat


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
