"""Learning curves, critical batch, schedules, downstream links, compression and tuning laws."""

from __future__ import annotations

import numpy as np
import pytest

from planner.curves import (
    LossTrace,
    TuningGrid,
    fit,
    fit_compression_curves,
    fit_critical_batch,
    fit_downstream_link,
    fit_learning_curve,
    fit_power_law,
    fit_schedule_law,
    fit_tuning_law,
    learning_curve_forms,
)
from planner.curves.learning_models import FORMS
from planner.curves.robust import jacobian
from planner.errors import ConfigError, FitError, NotFoundError

X = np.geomspace(1e4, 1e8, 40)


def _m4(x: np.ndarray) -> np.ndarray:
    """(y - 0.1) / (0.9 - y)^0.7 = 300 x^-0.6, solved by bisection."""
    low, high = np.full_like(x, 0.1), np.full_like(x, 0.9)
    for _ in range(200):
        middle = 0.5 * (low + high)
        above = (middle - 0.1) / (0.9 - middle) ** 0.7 > 300 * x**-0.6
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return 0.5 * (low + high)


CURVES = {
    "m1": lambda x: 5 * x**-0.2,
    "m2": lambda x: 5 * x**-0.3 + 0.05,
    "m3": lambda x: 5 * (1 / x + 1e-7) ** 0.3 + 0.02,
    "m4": _m4,
    "bnsl": lambda x: 0.02 + 2 * x**-0.1 * (1 + (x / 1e6) ** (1 / 0.4)) ** (-0.3 * 0.4),
}


@pytest.mark.parametrize("form", CURVES, ids=str)
def test_a_learning_curve_is_recovered_and_extrapolated(form):
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(X.size))
    curve = fit_learning_curve(X, CURVES[form](X) * noise, form=form)
    far = np.array([2e8, 4e8])
    np.testing.assert_allclose(curve.predict(far), CURVES[form](far), rtol=0.04)


def test_the_chosen_form_errs_least_on_the_points_held_back():
    curve = fit_learning_curve(X, CURVES["bnsl"](X))
    assert curve.errors[curve.form] == min(curve.errors.values())
    assert set(curve.errors) == set(learning_curve_forms())


def test_the_unit_of_x_does_not_matter():
    y = CURVES["m4"](X)
    one, other = fit_learning_curve(X, y, form="m4"), fit_learning_curve(1e9 * X, y, form="m4")
    np.testing.assert_allclose(one.predict(1e9), other.predict(1e18), rtol=1e-6)


def test_bad_learning_curves_are_refused():
    with pytest.raises(FitError, match="distinct x"):
        fit_learning_curve(X[:4], X[:4] ** -0.1, form="m4")
    with pytest.raises(ConfigError, match="positive and finite"):
        fit_learning_curve(X, np.where(X > 1e7, np.nan, 1.0))
    with pytest.raises(NotFoundError, match="m1"):
        fit_learning_curve(X, X**-0.1, form="m7")


def test_five_points_choose_a_form_and_four_do_not():
    assert fit_learning_curve(X[:5], X[:5] ** -0.1, num_bootstraps=0).form == "m1"
    with pytest.raises(FitError, match="at least 4 distinct x: got 3"):
        fit_learning_curve(X[:4], X[:4] ** -0.1, num_bootstraps=0)


def test_a_critical_batch_is_recovered_from_noisy_steps():
    batch = 2.0 ** np.arange(6, 15)
    steps = (1000 + 4e6 / batch) * np.exp(0.01 * np.random.default_rng(0).standard_normal(9))
    curve = fit_critical_batch(batch, steps)
    assert curve.balanced_batch == pytest.approx(4000, rel=0.1)
    assert curve.critical_batch(256) == pytest.approx(1.2 * 256 + 0.2 * 4000, rel=0.1)


def test_steps_that_do_not_fall_with_the_batch_are_refused():
    with pytest.raises(FitError, match="fall with the batch"):
        fit_critical_batch([1, 2, 3, 4], [10, 11, 12, 13])


def test_an_impossible_level_is_refused_by_every_curve():
    with pytest.raises(ConfigError, match="level must lie between 0 and 1"):
        fit_power_law([1, 2, 3, 4], [1, 2, 3, 4], level=90.0)
    with pytest.raises(ConfigError, match="level must lie between 0 and 1"):
        fit_tuning_law(_tuning(0.25), level=0.0)


def test_a_power_law_states_how_sure_its_exponent_is():
    x = np.geomspace(1, 1e4, 12)
    law = fit_power_law(
        x, 3 * x**0.47 * np.exp(0.05 * np.random.default_rng(1).standard_normal(12))
    )
    _, exponent = law.coefficients
    assert exponent.lower < 0.47 < exponent.upper
    assert law.predict(1e4) == pytest.approx(3 * 1e4**0.47, rel=0.1)


def _trace(rate: np.ndarray) -> LossTrace:
    """Losses by the law itself, summed step by step: no segments."""
    step = np.arange(50, rate.size + 1, 50)
    total = np.cumsum(rate) / 1e3
    drop = np.maximum(np.concatenate([[0.0], rate[:-1] - rate[1:]]), 0.0)
    loss = []
    for t in step:
        since = total[t - 1] - total[:t] + rate[:t] / 1e3
        reach = 3.0 * np.maximum(rate[:t], 1e-6) ** -0.6 * since
        gain = 0.35 * (drop[:t] * (1 - (reach + 1) ** -0.6)).sum()
        loss.append(2.6 + 0.5 * total[t - 1] ** -0.5 - gain)
    return LossTrace(learning_rate=rate, step=step.astype(float), loss=np.array(loss))


def test_a_schedule_law_predicts_a_schedule_it_has_not_seen():
    t = np.arange(4000)
    cosine = 0.55 + 0.45 * np.cos(np.pi * t / 4000)
    constant = np.ones(4000)
    cooldown = np.where(t < 3000, 1.0, 0.1)
    law = fit_schedule_law([_trace(cosine), _trace(constant), _trace(cooldown)])
    linear = _trace(np.where(t < 2500, 1.0, 1 - 0.9 * (t - 2500) / 1500))
    np.testing.assert_allclose(
        law.predict(linear.learning_rate, linear.step), linear.loss, rtol=0.004
    )


def test_constant_rates_alone_do_not_identify_a_schedule_law():
    with pytest.raises(FitError, match="lowers its rate"):
        fit_schedule_law([_trace(np.ones(2000))])


@pytest.mark.parametrize(
    "trace",
    [
        LossTrace(learning_rate=np.ones(9), step=np.empty(0), loss=np.empty(0)),
        LossTrace(learning_rate=np.zeros(9), step=np.array([3.0]), loss=np.array([2.0])),
        LossTrace(learning_rate=np.full(9, np.inf), step=np.array([3.0]), loss=np.array([2.0])),
        LossTrace(learning_rate=np.ones(9), step=np.array([10.0]), loss=np.array([2.0])),
    ],
    ids=["no loss", "no rate", "endless rate", "beyond its end"],
)
def test_a_trace_that_says_nothing_is_refused(trace):
    with pytest.raises(ConfigError, match="each trace needs"):
        fit_schedule_law([trace])


@pytest.mark.parametrize("kind", ["sigmoid", "exponential"])
def test_a_downstream_link_is_recovered(kind):
    loss = np.linspace(2.2, 4.0, 30)
    truth = {
        "sigmoid": lambda x: 0.25 + 0.55 / (1 + np.exp(3 * (x - 2.9))),
        "exponential": lambda x: 1 - (0.76 - 30 * np.exp(-1.8 * x)),
    }[kind]
    noisy = truth(loss) + 0.005 * np.random.default_rng(0).standard_normal(30)
    link = fit_downstream_link(loss, noisy, kind=kind)
    np.testing.assert_allclose(link.accuracy([2.1, 3.0]), truth(np.array([2.1, 3.0])), atol=0.03)


def test_accuracy_carries_the_interval_of_the_loss(sweep):
    loss = np.linspace(2.2, 4.0, 30)
    link = fit_downstream_link(loss, 0.25 + 0.55 / (1 + np.exp(3 * (loss - 2.9))))
    p = fit(sweep(), form="chinchilla", num_bootstraps=50).predict([1e10, 1e12], [2e11, 2e13])
    a = link.predict(p)
    assert (a.accuracy_lower < a.accuracy).all()
    assert (a.accuracy < a.accuracy_upper).all()


@pytest.mark.parametrize("swing", [0.01, 0.0])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_task_at_chance_is_refused(swing):
    loss = np.linspace(2.2, 4.0, 30)
    with pytest.raises(FitError, match="at chance"):
        fit_downstream_link(loss, 0.25 + swing * np.sin(40 * loss))


def test_the_best_original_grows_with_the_bytes_allowed():
    n = np.repeat([1e8, 1e9], 4)
    size = np.array([0.25e8, 0.5e8, 1e8, 2e8, 1.2e8, 2.5e8, 5e8, 20e8])
    loss = np.array([4.0, 3.5, 3.3, 3.25, 3.9, 3.1, 2.8, 2.7])
    curves = fit_compression_curves(n, size, loss)
    assert curves.best_original(0.6e8).num_params == 1e8
    assert curves.best_original(4e8).num_params == 1e9
    with pytest.raises(FitError, match="no original"):
        curves.best_original(1e6)
    bare = fit_compression_curves(n, size, loss, num_bootstraps=0).best_original(4e8)
    assert bare.num_params == 1e9
    assert bare.loss_lower is None


def _tuning(share: float, seed: int = 0, rate_off: float = 1.0) -> TuningGrid:
    generator = np.random.default_rng(seed)
    rows = []
    for n, d in ((1e8, 2e9), (1e8, 2e10), (3e8, 6e9), (3e8, 6e10), (1e9, 2e10)):
        best = np.log([40 * n**-0.5 * d**0.0 * (d / n) ** 0.1, 3 * d**0.5])
        for rate in np.exp(best[0]) * rate_off * 2.0 ** np.arange(-4, 5):
            for batch in np.exp(best[1]) * 2.0 ** np.arange(-3, 4):
                off = np.log([rate, batch]) - best
                excess = 0.004 * off[0] ** 2 + 0.002 * off[1] ** 2 - 0.0015 * off[0] * off[1]
                loss = (2 + 20 / n**0.15) * np.exp(excess + 5e-4 * generator.standard_normal())
                rows.append([n, d, rate, batch, loss])
    table = np.array(rows)[generator.random(len(rows)) < share]
    return TuningGrid(
        num_params=table[:, 0],
        num_tokens=table[:, 1],
        learning_rate=table[:, 2],
        tokens_per_step=table[:, 3],
        loss=table[:, 4],
    )


def test_a_quarter_of_the_cells_gives_rate_and_batch_of_an_unseen_size():
    law = fit_tuning_law(_tuning(0.25))
    setting = law.predict(3e9, 6e10)
    best = (40 * 3e9**-0.5 * 20**0.1, 3 * 6e10**0.5)
    ratio = (float(setting.learning_rate) / best[0], float(setting.tokens_per_step) / best[1])
    excess = 0.004 * np.log(ratio[0]) ** 2 + 0.002 * np.log(ratio[1]) ** 2
    excess -= 0.0015 * np.log(ratio[0]) * np.log(ratio[1])
    assert excess < 0.0015
    assert law.excess_loss(1.0, 1.0) == 0.0
    assert law.excess_loss(4.0, 1.0) > 0.0


def test_diverged_cells_are_counted_not_fitted():
    grid = _tuning(1.0)
    loss = grid.loss.copy()
    loss[::10] = np.nan
    loss[1::10] *= 3
    spoiled = TuningGrid(
        num_params=grid.num_params,
        num_tokens=grid.num_tokens,
        learning_rate=grid.learning_rate,
        tokens_per_step=grid.tokens_per_step,
        loss=loss,
    )
    law = fit_tuning_law(spoiled)
    assert law.num_rows + sum(law.dropped.values()) == loss.size
    assert law.dropped["loss is absent or not finite"] == np.isnan(loss).sum()


def test_no_trainings_are_too_few_for_a_law_of_rate_and_batch():
    none = np.empty(0)
    with pytest.raises(FitError, match="got 0 with 0 rows"):
        fit_tuning_law(
            TuningGrid(
                num_params=none,
                num_tokens=none,
                learning_rate=none,
                tokens_per_step=none,
                loss=none,
            )
        )


def test_one_grid_is_too_few_for_a_law_of_rate_and_batch():
    grid = _tuning(1.0)
    first = grid.num_tokens == 2e9
    with pytest.raises(FitError, match="at least two"):
        fit_tuning_law(
            TuningGrid(
                num_params=grid.num_params[first],
                num_tokens=grid.num_tokens[first],
                learning_rate=grid.learning_rate[first],
                tokens_per_step=grid.tokens_per_step[first],
                loss=grid.loss[first],
            )
        )


@pytest.mark.parametrize("name", FORMS)
def test_the_slopes_of_a_learning_curve_are_its_differences(name):
    t = np.linspace(0, 3, 12)
    form = FORMS[name]
    theta = form.starts(t, np.log(0.05 + np.exp(-0.4 * t)))
    numeric = jacobian(lambda at: form.model(at, t), theta)
    np.testing.assert_allclose(form.slopes(theta, t), numeric, atol=1e-8)
