"""Which form to trust: back-tests inside the table, and weights from them.

A back-test fits a form to the smaller trainings of the table and scores it on the larger ones.
Forms are weighted by one over their squared error; what is known from elsewhere counts as two
back-tests, so that few rows do not decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.curves.arrays import BoolArray, FloatArray
from planner.curves.forms import CurveForm
from planner.curves.law import Backtest, ExtrapolationError
from planner.curves.points import Points, count_distinct
from planner.curves.surface import Objective

__all__ = ["MIXTURE_FORMS", "backtest", "extrapolation_error", "mixture_weights"]

MIXTURE_FORMS = ("anchored", "chinchilla", "tied", "coupled")

QUANTILES = (0.5, 0.65, 0.8)
"""Of compute: where the table is cut into smaller and larger trainings."""

MIN_TRAIN, MIN_TEST = 8, 3

PRIOR_ERROR = {"anchored": 0.015}
PRIOR_ERROR_OTHER = 0.10
"""Fraction of the loss. Without a prior a form is off by 2 percent in the median and by 10 in the
tail when the table is 10 to 100 times smaller than the target (docs/curves.md)."""

PRIOR_BACKTESTS = 2.0

GROWTH = 0.003
"""Deviation of log loss per e-fold of compute beyond the table that the draws do not show."""


def backtest(
    points: Points, forms: Sequence[CurveForm], objective: Objective
) -> tuple[Backtest, ...]:
    """Return the error of every form at every cut of the table that leaves enough rows."""
    rows = []
    flops = points.compute_flops
    for is_train in _cuts(points):
        train, test = points.where(is_train), points.where(~is_train)
        for form in forms:
            if len(train) < form.min_rows:
                continue
            params = form.fit(train, objective, None)[0]
            with np.errstate(all="ignore"):
                error = np.abs(form.predict(params, test.covariates())[0] / test.loss - 1)
            rows.append(
                Backtest(
                    form=form.name,
                    train_max_flops=float(train.compute_flops.max()),
                    flops_ratio=float(np.median(flops[~is_train]) / train.compute_flops.max()),
                    num_train=len(train),
                    num_test=len(test),
                    median_error_fraction=float(np.median(np.nan_to_num(error, nan=1e3))),
                )
            )
    return tuple(rows)


def _cuts(points: Points) -> list[BoolArray]:
    flops = points.compute_flops
    cuts: list[BoolArray] = []
    for quantile in QUANTILES:
        is_train = flops <= np.quantile(flops, quantile)
        num = int(is_train.sum())
        repeated = any((is_train == other).all() for other in cuts)
        if num < MIN_TRAIN or len(points) - num < MIN_TEST or repeated:
            continue
        if (
            min(
                count_distinct(points.num_params[is_train]),
                count_distinct(points.num_tokens[is_train]),
            )
            >= 3
        ):
            cuts.append(is_train)
    return cuts


def mixture_weights(forms: Sequence[CurveForm], backtests: Sequence[Backtest]) -> FloatArray:
    """Return the share of each form, summing to one."""
    shares = []
    for form in forms:
        prior = PRIOR_ERROR.get(form.name, PRIOR_ERROR_OTHER)
        errors = np.array([b.median_error_fraction for b in backtests if b.form == form.name])
        square = PRIOR_BACKTESTS * prior**2 + float((errors**2).sum())
        shares.append((PRIOR_BACKTESTS + errors.size) / square)
    return np.array(shares) / sum(shares)


def extrapolation_error(backtests: Sequence[Backtest], form: str) -> ExtrapolationError:
    """Return the growth of error with distance that back-tests of the leading form reveal."""
    relative = np.array(
        [
            b.median_error_fraction / np.log(max(b.flops_ratio, 2.0))
            for b in backtests
            if b.form == form
        ]
    )
    square = PRIOR_BACKTESTS * GROWTH**2 + float((relative**2).sum())
    return ExtrapolationError(
        floor=0.0, growth=float(np.sqrt(square / (PRIOR_BACKTESTS + relative.size)))
    )
