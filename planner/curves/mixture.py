"""Which form to trust: back-tests inside the table, and weights from them.

A back-test fits a form to the smaller trainings of the table and scores it on the larger ones.
Forms are weighted by one over their squared error; what is known from elsewhere counts as four
back-tests, so that few rows do not decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.curves.arrays import BoolArray, FloatArray, safe_log
from planner.curves.forms import CurveForm
from planner.curves.intervals import resampling_counts
from planner.curves.law import Backtest, ExtrapolationError
from planner.curves.points import Points, count_distinct
from planner.curves.robust import MEDIAN_OF_NORMAL, robust_deviation
from planner.curves.surface import Objective

__all__ = [
    "MIXTURE_FORMS",
    "NOISE_FLOOR",
    "backtest",
    "bootstrap_weights",
    "draw_params",
    "extrapolation_error",
    "mixture_weights",
]

MIXTURE_FORMS = ("anchored", "chinchilla", "tied", "coupled")

QUANTILES = (0.5, 0.65, 0.8)
"""Of compute: where the table is cut into smaller and larger trainings."""

MIN_TRAIN, MIN_TEST, MIN_DISTINCT = 8, 3, 3

PRIOR_ERROR = {"anchored": 0.015}
PRIOR_ERROR_OTHER = 0.15
"""Fraction of the loss. Without a prior a form is off by 2 to 4 percent in the median and by 15 in
the tail when the table is 10 to 100 times smaller than the target (docs/curves.md)."""

PRIOR_BACKTESTS = 4.0

TARGET_RATIO = 30.0
"""Of compute: what a prediction usually reaches for. A back-test to less counts less, as the ratio
of the logarithms: a form that is right at twice the compute may be far off at thirty times."""

BACKTEST_DRAWS = 100

MAX_BOOTSTRAP_CELLS = 2_000_000
"""Rows times draws: beyond it fewer draws are made."""

NOISE_FLOOR = 5e-3
"""Deviation of log loss: the law is 0.2 to 0.6 percent off wherever it was checked."""

GROWTH, PRIOR_GROWTHS = 0.002, 2.0
"""Deviation of log loss per e-fold of compute beyond the table that the draws do not show."""


def backtest(
    points: Points, forms: Sequence[CurveForm], objective: Objective
) -> tuple[Backtest, ...]:
    """Return the error of every form at every cut of the table that leaves enough rows."""
    rows = []
    flops = points.compute_flops
    for is_train in _cuts(points):
        train, test = points.where(is_train), points.where(~is_train)
        for place, form in enumerate(forms):
            if len(train) < form.min_rows:
                continue
            equal = None if form.draw is not None else np.ones((1, len(train)))
            params = form.fit(train, objective, equal)[0]
            error = _log_error(form, params, test)[0]
            expected = _expected_error(form, params, train, test, objective) if not place else None
            rows.append(
                Backtest(
                    form=form.name,
                    train_max_flops=float(train.compute_flops.max()),
                    flops_ratio=float(np.median(flops[~is_train]) / train.compute_flops.max()),
                    num_train=len(train),
                    num_test=len(test),
                    median_error_fraction=float(np.expm1(np.median(np.abs(error)))),
                    expected_error_fraction=expected,
                )
            )
    return tuple(rows)


def _log_error(form: CurveForm, params: FloatArray, test: Points) -> FloatArray:
    """Return log of predicted over true loss, shape (s, n); a nonsense prediction is off by e."""
    error = safe_log(form.predict(params, test.covariates())) - np.log(test.loss)
    return np.asarray(np.clip(np.nan_to_num(error, nan=1.0), -1.0, 1.0))


def _expected_error(
    form: CurveForm, params: FloatArray, train: Points, test: Points, objective: Objective
) -> float:
    """Return the deviation of the prediction's error that draws and noise of the fit foretell."""
    draws = draw_params(form, train, objective, BACKTEST_DRAWS, seed=0)
    deviation = np.median(_log_error(form, draws, test).std(axis=0))
    fitted = _log_error(form, params, train)[0]
    noise = max(robust_deviation(fitted, params.shape[1]), NOISE_FLOOR)
    return float(np.hypot(deviation, noise))


def draw_params(
    form: CurveForm, points: Points, objective: Objective, num: int, seed: int
) -> FloatArray:
    """Return draws of the parameters, shape (about num, p): its own or a bootstrap."""
    if form.draw is not None:
        draws = form.draw(points, num, seed)
    else:
        draws = form.fit(points, objective, bootstrap_weights(points, num, seed))[0]
    return draws[np.isfinite(draws).all(axis=1)]


def bootstrap_weights(points: Points, num_bootstraps: int, seed: int) -> FloatArray:
    """Return multinomial counts, shape (draws, n); rows of one training run stay together."""
    num_draws = int(np.clip(MAX_BOOTSTRAP_CELLS // len(points), 10, num_bootstraps))
    return resampling_counts(len(points), num_draws, seed, points.run)


def _cuts(points: Points) -> list[BoolArray]:
    flops = points.compute_flops
    cuts: list[BoolArray] = []
    for quantile in QUANTILES:
        is_train = flops <= np.quantile(flops, quantile)
        num = int(is_train.sum())
        repeated = any((is_train == other).all() for other in cuts)
        if num < MIN_TRAIN or len(points) - num < MIN_TEST or repeated:
            continue
        columns = (points.num_params[is_train], points.num_tokens[is_train])
        if min(map(count_distinct, columns)) >= MIN_DISTINCT:
            cuts.append(is_train)
    return cuts


def mixture_weights(forms: Sequence[CurveForm], backtests: Sequence[Backtest]) -> FloatArray:
    """Return the share of each form, summing to one."""
    shares = []
    for form in forms:
        prior = PRIOR_ERROR.get(form.name, PRIOR_ERROR_OTHER)
        own = [b for b in backtests if b.form == form.name]
        errors = np.array([b.median_error_fraction for b in own])
        reach = np.log([max(b.flops_ratio, 1.0) for b in own]) / np.log(TARGET_RATIO)
        counts = np.minimum(reach, 1.0)
        square = PRIOR_BACKTESTS * prior**2 + float((counts * errors**2).sum())
        shares.append((PRIOR_BACKTESTS + float(counts.sum())) / square)
    return np.array(shares) / sum(shares)


def extrapolation_error(backtests: Sequence[Backtest]) -> ExtrapolationError:
    """Return the growth of error with distance that back-tests reveal beyond what was foretold.

    A back-test whose error is no larger than the draws and the noise of its own fit say adds
    nothing; what is larger is the error of the form.
    """
    excess = []
    for row in backtests:
        if row.expected_error_fraction is not None:
            deviation = np.log1p(row.median_error_fraction) / MEDIAN_OF_NORMAL
            distance = np.log(max(row.flops_ratio, 2.0))
            excess.append((deviation**2 - row.expected_error_fraction**2) / distance**2)
    square = PRIOR_GROWTHS * GROWTH**2 + max(sum(excess), 0.0)
    growth = float(np.sqrt(square / (PRIOR_GROWTHS + len(excess))))
    return ExtrapolationError(floor=0.0, growth=growth)
