"""From a table to a law."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from planner.curves import Points, ScalingLaw, curve_forms, fit
from planner.curves.mixture import bootstrap_weights
from planner.errors import ConfigError, FitError, NotFoundError


@pytest.fixture(scope="module")
def law(sweep) -> ScalingLaw:
    return fit(sweep(), num_bootstraps=200)


def test_the_mixture_predicts_inside_the_table_to_half_a_percent(law, sweep):
    p = sweep(noise=0.0)
    predicted = law.predict(p.num_params, p.num_tokens)
    np.testing.assert_allclose(predicted.loss, p.loss, rtol=0.005)


def test_the_same_table_gives_the_same_law(sweep):
    one, other = (fit(sweep(), num_bootstraps=10) for _ in range(2))
    assert one.to_json() == other.to_json()


def test_a_law_survives_json_unchanged(law):
    again = ScalingLaw.from_json(law.to_json())
    assert again.to_json() == law.to_json()
    np.testing.assert_array_equal(
        again.predict(7e10, 1.4e12).loss_upper, law.predict(7e10, 1.4e12).loss_upper
    )


def test_a_law_is_saved_and_loaded(law, tmp_path):
    law.save(tmp_path / "laws.json")
    assert ScalingLaw.load(tmp_path / "laws.json").to_json() == law.to_json()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": "planner.scaling-law/0"}'],
    ids=["empty", "list", "none", "old"],
)
def test_a_document_that_is_no_law_is_refused(text):
    with pytest.raises(ConfigError, match="a law"):
        ScalingLaw.from_json(text)


def test_a_file_that_is_not_text_is_no_law(tmp_path):
    (tmp_path / "results.parquet").write_bytes(b"PAR1\xbc\xff")
    with pytest.raises(ConfigError, match="is no law"):
        ScalingLaw.load(tmp_path / "results.parquet")


@pytest.mark.parametrize("change", ["extra", "missing"])
def test_a_damaged_law_is_refused(law, change):
    document = json.loads(law.to_json())
    if change == "extra":
        document["surprise"] = 1
    else:
        del document["noise"]
    with pytest.raises(ConfigError, match="damaged"):
        ScalingLaw.from_json(json.dumps(document))


def test_intervals_widen_with_distance_and_with_level(law):
    near, far = law.predict(3e9, 1e11), law.predict(3e11, 1e13)
    assert far.loss_upper / far.loss_lower > near.loss_upper / near.loss_lower
    narrow, wide = law.predict(3e10, 1e12, level=0.5), law.predict(3e10, 1e12, level=0.95)
    assert wide.loss_lower < narrow.loss_lower < narrow.loss < narrow.loss_upper < wide.loss_upper


def test_the_prediction_interval_holds_the_confidence_interval(law):
    p = law.predict(np.geomspace(1e8, 1e12, 9), 2e11)
    assert (p.loss_lower < p.confidence_lower).all()
    assert (p.confidence_upper < p.loss_upper).all()


def test_loss_falls_with_size_and_with_tokens(law):
    sizes = law.predict(np.geomspace(1e7, 1e13, 30), 1e11).loss
    tokens = law.predict(1e9, np.geomspace(1e8, 1e14, 30)).loss
    assert (np.diff(sizes) < 0).all()
    assert (np.diff(tokens) < 0).all()


def test_the_extrapolation_factor_is_compute_over_the_largest_fitted(law):
    assert law.extrapolation_factor(law.fitted_range.train_flops[1] * 7) == pytest.approx(7)
    assert law.predict(3e9, 1e11).extrapolation_factor == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf], ids=str)
def test_a_prediction_at_an_impossible_size_is_refused(law, bad):
    with pytest.raises(ConfigError, match="num_params must be positive"):
        law.predict(bad, 1e9)


def test_sizes_and_tokens_that_do_not_broadcast_are_refused(law):
    with pytest.raises(ConfigError, match=r"num_params \(2,\), num_tokens \(3,\)"):
        law.predict([1e9, 2e9], [1e10, 2e10, 3e10])


def test_a_resampling_has_as_many_rows_as_the_table_though_runs_are_missing(sweep):
    p = dataclasses.replace(sweep(), run=np.repeat(np.arange(12) * 1000, 3))
    weights = bootstrap_weights(p.where(p.run > 3000), 20, 0)
    assert (weights.sum(axis=1) == 24).all()


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5])
def test_an_impossible_level_is_refused(law, sweep, level):
    with pytest.raises(ConfigError, match="level"):
        law.predict(1e9, 1e9, level=level)
    with pytest.raises(ConfigError, match="level"):
        fit(sweep(), level=level)


def test_an_unknown_form_is_named_with_the_closest(sweep):
    with pytest.raises(NotFoundError, match="Did you mean 'chinchilla'"):
        fit(sweep(), form="chinchila")


def test_an_unknown_objective_is_named_with_the_closest(sweep):
    with pytest.raises(NotFoundError, match="huber_log"):
        fit(sweep(), objective="hubr_log")


def _take(points: Points, mask: np.ndarray) -> Points:
    return points.where(mask)


@pytest.mark.parametrize("form", ["mixture", "chinchilla", "tied", "anchored"])
def test_three_rows_are_refused(sweep, form):
    p = sweep()
    with pytest.raises(FitError, match="needs at least"):
        fit(_take(p, np.arange(36) < 3), form=form)


@pytest.mark.parametrize("form", ["mixture", "chinchilla", "coupled"])
def test_one_size_is_refused(sweep, form):
    p = sweep(sizes=2, tokens=12)
    with pytest.raises(FitError, match="distinct num_params: got 1"):
        fit(_take(p, p.num_params == p.num_params[0]), form=form)


def test_two_token_counts_are_refused(sweep):
    with pytest.raises(FitError, match="distinct num_tokens: got 2"):
        fit(sweep(sizes=10, tokens=2))


def test_sizes_and_tokens_in_lockstep_are_refused():
    n = np.geomspace(1e8, 1e10, 12)
    loss = 1.8 + 480 / n**0.35 + 2100 / (20 * n) ** 0.37
    with pytest.raises(FitError, match="lockstep"):
        fit(Points(num_params=n, num_tokens=20 * n, loss=loss))


def test_sizes_and_tokens_in_lockstep_still_give_a_law_of_compute():
    n = np.geomspace(1e8, 1e10, 12)
    loss = 1.8 + 900 / (6 * n * 20 * n) ** 0.15
    law = fit(Points(num_params=n, num_tokens=20 * n, loss=loss), form="compute", num_bootstraps=20)
    assert law.coefficient("gamma").value == pytest.approx(0.15, abs=0.002)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_one_size_gives_a_law_of_compute_without_a_warning_of_numpy():
    d = np.geomspace(1e9, 1e11, 12)
    points = Points(num_params=np.full(12, 1e8), num_tokens=d, loss=2 + 900 / (6e8 * d) ** 0.15)
    law = fit(points, form="compute", num_bootstraps=20)
    assert "collinear" not in {w.code for w in law.warnings}


def test_a_form_says_which_column_it_lacks(sweep):
    with pytest.raises(FitError, match="unique_tokens"):
        fit(sweep(), form="repeated")


def test_a_back_test_is_made_for_every_form_of_the_mixture(law):
    assert {b.form for b in law.backtests} == {c.form for c in law.components}
    assert sum(c.weight for c in law.components) == pytest.approx(1.0)


def test_rows_of_one_run_are_resampled_together(sweep):
    p = sweep(noise=0.004)
    runs = np.repeat(np.arange(12), 3)
    alone = fit(p, form="chinchilla", num_bootstraps=50)
    grouped = fit(dataclasses.replace(p, run=runs), form="chinchilla", num_bootstraps=50)
    assert not np.array_equal(alone.components[0].draws, grouped.components[0].draws)
    assert any(w.code == "checkpoints-of-one-run" for w in grouped.warnings)


def test_every_form_states_equation_source_and_coefficients():
    for name, form in curve_forms().items():
        assert form.name == name
        assert "=" in form.equation
        assert form.source
        assert len(set(form.coefficients)) == len(form.coefficients)


@pytest.mark.parametrize("kind", ["random", "rising", "huge", "tiny"])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_table_that_is_no_sweep_gives_finite_numbers_without_a_warning_of_numpy(kind):
    generator = np.random.default_rng(1)
    n = np.exp(generator.uniform(np.log(1e5), np.log(3e6), 14))
    d = np.exp(generator.uniform(np.log(1e5), np.log(1e8), 14))
    loss = {
        "random": np.exp(generator.normal(1.0, 0.5, 14)),
        "rising": 2 + (n / 1e5) ** 0.3 * (d / 1e6) ** 0.1,
        "huge": np.exp(generator.normal(20.0, 5.0, 14)),
        "tiny": np.exp(generator.normal(-20.0, 3.0, 14)),
    }[kind]
    law = fit(Points(num_params=n, num_tokens=d, loss=loss), num_bootstraps=50)
    predicted = law.predict([1e6, 1e12], [1e6, 1e14])
    assert np.isfinite([predicted.loss, predicted.loss_lower, predicted.loss_upper]).all()
    json.loads(law.to_json())
