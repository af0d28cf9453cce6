"""Every form recovers its own coefficients, inside its intervals at about their stated rate."""

from __future__ import annotations

import numpy as np
import pytest

from planner.curves import Points, curve_forms, fit

BASE = (1.8, 480.0, 2100.0, 0.35, 0.37)
TRUTHS = {
    "chinchilla": BASE,
    "anchored": BASE,
    "tied": (1.8, 480.0, 600.0, 0.35, 0.35),
    "coupled": (1.7, 900.0, 4000.0, 0.45, 0.5, 0.8),
    "pinned": (1.6, 480.0, 2100.0, 0.35, 0.37),
    "kaplan": (0.0, 8.8e13**0.8, 5.4e13, 0.8, 1.0, 0.095),
    "overtraining": (1.8, 700.0, 700.0, 0.17),
    "compute": (1.8, 900.0, 0.15),
    "sparsity": (1.5, 480.0, 2100.0, 0.35, 0.37, 0.05, 0.3, 9.0, 0.5, 0.25),
    "precision": (*BASE, 2.5, 2.0),
    "post-training-precision": (*BASE, 0.3, 0.5, 0.5, 1.5),
    "repeated": (*BASE, 12.0, 6.0),
}
"""Coefficients of the order of the published ones."""


def _covariates() -> dict[str, np.ndarray]:
    bits = np.repeat([3.0, 5.0, 8.0], 36)
    tokens = np.tile(np.repeat(np.geomspace(1e9, 1e11, 6), 6), 3)
    return {
        "sparsity_fraction": np.repeat([0.0, 0.5, 0.9], 36),
        "weight_bits": bits,
        "activation_bits": np.tile(np.repeat([4.0, 8.0, 16.0], 12), 3),
        "post_training_bits": bits,
        "unique_tokens": tokens / np.repeat([1.0, 4.0, 40.0], 36),
    }


def _needed(form: str) -> dict[str, np.ndarray]:
    needed = set(curve_forms()[form].columns) - {"num_params", "num_tokens"}
    return {name: value for name, value in _covariates().items() if name in needed}


def test_every_form_has_a_truth_to_recover():
    assert set(TRUTHS) == set(curve_forms())


@pytest.mark.parametrize("form", TRUTHS, ids=str)
def test_noise_and_outliers_leave_predictions_within_one_percent(sweep, form):
    p = sweep(form=form, truth=TRUTHS[form], copies=3, outliers=0.05, **_needed(form))
    exact = sweep(form=form, truth=TRUTHS[form], copies=3, noise=0.0, **_needed(form))
    law = fit(p, form=form, num_bootstraps=10)
    columns = {name: getattr(p, name) for name in curve_forms()[form].columns}
    predicted = law.predict(**columns)
    np.testing.assert_allclose(predicted.loss, exact.loss, rtol=0.01)


def _inside(sweep, form: str, seeds: int, **design: object) -> np.ndarray:
    """Return which coefficients lie in their 90 % intervals, shape (seeds, p)."""
    rows = []
    for seed in range(seeds):
        p = sweep(form=form, truth=TRUTHS[form], outliers=0.05, seed=seed, **design)
        law = fit(p, form=form, num_bootstraps=60)
        rows.append(
            [
                (c.lower is None or c.lower <= truth) and (c.upper is None or truth <= c.upper)
                for c, truth in zip(law.coefficients, TRUTHS[form], strict=True)
            ]
        )
    return np.array(rows)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["chinchilla", "anchored", "tied", "pinned", "compute"])
def test_ninety_percent_intervals_hold_the_truth_in_four_of_five_seeds_or_more(sweep, form):
    inside = _inside(sweep, form, 10)
    assert inside.mean() >= 0.8, inside.mean(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["precision", "coupled"])
def test_intervals_of_the_slower_forms_hold_the_truth_in_two_of_three_seeds_or_more(sweep, form):
    inside = _inside(sweep, form, 3, copies=3, **_needed(form))
    assert inside.mean() >= 0.67, inside.mean(axis=0)


def test_a_coupled_law_with_exponent_one_is_the_reference_law():
    forms = curve_forms()
    columns = {"num_params": np.array([1e9]), "num_tokens": np.array([2e10])}
    one = forms["coupled"].predict(np.array([[*BASE, 1.0]]), columns)
    np.testing.assert_allclose(one, forms["chinchilla"].predict(np.array([BASE]), columns))


def test_the_overtraining_form_is_the_tied_law_in_other_words(sweep):
    p = sweep(form="tied", truth=TRUTHS["tied"])
    tied, other = (fit(p, form=f, num_bootstraps=20) for f in ("tied", "overtraining"))
    eta = other.coefficient("eta").value
    assert 2 * eta == pytest.approx(tied.coefficient("alpha").value, rel=1e-9)
    np.testing.assert_allclose(
        other.predict(p.num_params, p.num_tokens).loss,
        tied.predict(p.num_params, p.num_tokens).loss,
        rtol=1e-9,
    )


def test_many_bits_of_precision_are_as_good_as_all():
    form = curve_forms()["precision"]
    columns = {
        "num_params": np.array([1e9, 1e9]),
        "num_tokens": np.array([2e10, 2e10]),
        "weight_bits": np.array([200.0, 4.0]),
        "activation_bits": np.array([200.0, 4.0]),
    }
    full, few = form.predict(np.array([TRUTHS["precision"]]), columns)[0]
    plain = curve_forms()["chinchilla"].predict(np.array([BASE]), columns)[0, 0]
    assert full == pytest.approx(plain)
    assert few > full


def test_quantising_after_longer_training_costs_more():
    form = curve_forms()["post-training-precision"]
    tokens = np.array([1e10, 1e12])
    columns = {"num_params": np.full(2, 1e9), "num_tokens": tokens}
    added = [
        form.predict(
            np.array([TRUTHS["post-training-precision"]]), columns | {"post_training_bits": b}
        )
        for b in (np.full(2, 3.0), np.full(2, 300.0))
    ]
    cost = (added[0] - added[1])[0]
    assert 0 < cost[0] < cost[1]


def test_points_of_another_law_are_fitted_worse(sweep):
    p = sweep(form="coupled", truth=TRUTHS["coupled"], noise=0.0)
    own = fit(p, form="coupled", num_bootstraps=20).objective_value
    other = fit(p, form="tied", num_bootstraps=20).objective_value
    assert own < 0.5 * other


def test_a_point_without_its_columns_is_refused_with_their_names():
    law_points = Points(
        num_params=np.geomspace(1e8, 1e9, 20),
        num_tokens=np.geomspace(1e9, 1e11, 20)[::-1],
        loss=np.linspace(3, 2, 20),
    )
    with pytest.raises(ValueError, match="sparsity_fraction"):
        fit(law_points, form="sparsity")
