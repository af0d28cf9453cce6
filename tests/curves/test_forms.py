"""What the registered forms say of each other, and what they need."""

from __future__ import annotations

import numpy as np
import pytest

from planner.curves import Points, curve_forms, fit

BASE = (1.8, 480.0, 2100.0, 0.35, 0.37)
TRUTHS = {
    "tied": (1.8, 480.0, 600.0, 0.35, 0.35),
    "coupled": (1.7, 900.0, 4000.0, 0.45, 0.5, 0.8),
    "precision": (*BASE, 2.5, 2.0),
    "post-training-precision": (*BASE, 0.3, 0.5, 0.5, 1.5),
}


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
