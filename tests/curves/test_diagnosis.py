"""Each pitfall of a scaling study is found and named, and sound data are left in peace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from planner.curves import Points, best_sizes, fit


def _codes(points: Points) -> set[str]:
    return {w.code for w in fit(points, num_bootstraps=10).warnings}


def _change(points: Points, **columns: object) -> Points:
    return dataclasses.replace(points, **columns)


def _scale_loss(points: Points, factor: np.ndarray) -> Points:
    return _change(points, loss=points.loss * factor)


def _noisy_below(points: Points) -> Points:
    small = points.compute_flops <= np.median(points.compute_flops)
    noise = np.random.default_rng(1).standard_normal(len(points))
    return _scale_loss(points, np.exp(np.where(small, 0.02, 0.001) * noise))


def _one_outlier(points: Points) -> Points:
    factor = np.ones(len(points))
    factor[20] = 1.3
    return _scale_loss(points, factor)


def _rising(points: Points) -> Points:
    factor = np.where(points.num_tokens > 5e10, 1.25, 1.0)
    return _scale_loss(points, factor)


def _broken_protocol(points: Points) -> Points:
    flops = points.compute_flops
    return _scale_loss(points, (flops / flops.max()) ** 0.06 * 1.2 + 0.3 * (flops > 3e19))


def _n_columns(points: Points, share: float) -> Points:
    return _change(points, num_params_non_embedding=points.num_params * (1 - share))


CASES: dict[str, Callable[[Points], Points]] = {
    "outliers": _one_outlier,
    "heteroscedastic": _noisy_below,
    "loss-rises-with-tokens": _rising,
    "law-does-not-hold": _broken_protocol,
    "loss-unit": lambda p: _scale_loss(p, np.full(len(p), 0.2)),
    "flops-convention": lambda p: _change(
        p, train_flops=p.compute_flops * np.linspace(1, 3, len(p))
    ),
    "embedding-heavy": lambda p: _n_columns(p, 0.6),
    "tiny-models": lambda p: _change(p, num_params=p.num_params / 100),
    "learning-rate-not-tuned": lambda p: _change(p, learning_rate=np.full(len(p), 1e-3)),
    "long-warmup": lambda p: _change(p, warmup_fraction=np.full(len(p), 0.4)),
    "checkpoints-of-one-run": lambda p: _change(p, run=np.arange(len(p)) // 4),
    "repeated-data": lambda p: _change(p, unique_tokens=p.num_tokens / 3),
    "extreme-tokens-per-param": lambda p: _change(p, num_tokens=p.num_tokens * 300),
    "few-sizes": lambda p: p.where(np.isin(p.num_params, np.unique(p.num_params)[:3])),
    "large-noise": lambda p: _scale_loss(
        p, np.exp(0.05 * np.random.default_rng(0).standard_normal(len(p)))
    ),
}


@pytest.mark.parametrize("code", CASES, ids=str)
def test_the_pitfall_is_named_with_its_number(sweep, code):
    warnings = fit(CASES[code](sweep()), num_bootstraps=10).warnings
    assert code in {w.code for w in warnings}
    for warning in warnings:
        assert warning.value is not None, code
        assert len(warning.message) > 40


def test_gaps_in_a_column_hide_no_pitfall_and_make_none(sweep):
    p = sweep()
    gap = np.arange(len(p)) == 3
    given = {
        "learning_rate": np.where(gap, np.nan, 1e-3),
        "num_params_non_embedding": np.where(gap, np.nan, 0.9 * p.num_params),
    }
    law = fit(_change(p, **given), num_bootstraps=10)
    codes = {w.code for w in law.warnings}
    assert "learning-rate-not-tuned" in codes
    assert "embedding-heavy" not in codes
    assert law.checklist["set-up: learning rate"] == (
        "learning_rate: 0.001 to 0.001; 1 rows do not say"
    )
    law.to_json()


def test_a_longer_training_that_ends_higher_is_counted_once_and_a_repeat_never(sweep):
    p = sweep(noise=0.0)
    repeated = np.r_[np.arange(len(p)), np.zeros(2, dtype=int)]
    again = Points(
        num_params=p.num_params[repeated],
        num_tokens=p.num_tokens[repeated],
        loss=p.loss[repeated] * np.r_[np.ones(len(p)), 1.02, 1.03],
    )
    assert "loss-rises-with-tokens" not in _codes(again)
    size = np.exp([18.0045, 18.0055])  # to two decimals these are two sizes
    pair = Points(
        num_params=np.r_[p.num_params, size],
        num_tokens=np.r_[p.num_tokens, 1e9, 2e9],
        loss=np.r_[p.loss, 4.0, 4.2],
    )
    (warning,) = (
        w for w in fit(pair, num_bootstraps=10).warnings if w.code == "loss-rises-with-tokens"
    )
    assert warning.value == 1


@pytest.mark.parametrize(
    ("form", "used"),
    [("mixture", "the geometric mean of all"), ("chinchilla", "the surface alone")],
)
def test_methods_that_disagree_are_named_with_the_one_that_is_used(isoflop_sweep, form, used):
    p = isoflop_sweep(noise=0.0)
    flops = p.compute_flops
    best = 2e8 * (flops / 1e18) ** 0.75
    tilted = p.loss * np.exp(0.02 * np.log(p.num_params / best) ** 2)
    law = fit(_change(p, loss=tilted), form=form, num_bootstraps=20)
    (message,) = (w.message for w in law.warnings if w.code == "methods-disagree")
    assert used in message
    sizes = {row.method: row.num_params for row in best_sizes(law)}
    alone = sizes["recommended"] == pytest.approx(sizes["surface"])
    assert alone == (form == "chinchilla")


def test_sound_data_raise_no_alarm(isoflop_sweep):
    alarming = {
        "law-does-not-hold",
        "loss-unit",
        "few-sizes",
        "large-noise",
        "outliers",
        "few-budgets",
    }
    assert not alarming & _codes(isoflop_sweep())


def test_minima_at_the_edge_are_named(isoflop_sweep):
    assert "optimum-at-edge" in _codes(isoflop_sweep(off_center=25.0))


def test_an_asymptote_that_is_not_identified_is_said_to_be_open():
    generator = np.random.default_rng(0)
    n, d = np.meshgrid(np.geomspace(1e7, 1e8, 5), np.geomspace(1e8, 1e9, 5))
    n, d = n.ravel(), d.ravel()
    loss = (20 / n**0.1 + 30 / d**0.12) * np.exp(0.003 * generator.standard_normal(25))
    law = fit(Points(num_params=n, num_tokens=d, loss=loss), form="chinchilla", num_bootstraps=200)
    assert law.coefficient("E").lower is None
    mixed = fit(Points(num_params=n, num_tokens=d, loss=loss), num_bootstraps=100)
    assert "asymptote-not-identified" in {w.code for w in mixed.warnings}


def test_the_checklist_is_filled_from_the_data(sweep):
    checklist = fit(sweep(), num_bootstraps=10).checklist
    assert {key.split(":")[0] for key in checklist} == {
        "law",
        "set-up",
        "data",
        "collection",
        "fit",
    }
    assert checklist["set-up: learning rate"] == "not stated in the table"
    assert checklist["set-up: sizes"].startswith("6 sizes")
