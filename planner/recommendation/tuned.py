"""The best learning rate and batch, read off the swept trials.

What the fitted law says of size and tokens is taken off each loss; what is left is a parabola in
the logarithm of the setting, fitted robustly near its bottom. Its vertex is the best value, and
how the vertex moves with size is a power law where at least three sizes show it. Reading off the
lowest trial instead is noise: 6 % of a grid lies within 0.25 % of its best loss (Li et al. 2025,
arXiv:2503.04715, whose exponents depend on how the optimum is read off while the loss does not).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from planner.curves import ScalingLaw
from planner.curves.robust import robust_deviation
from planner.curves.tuning_law import TuningGrid, fit_tuning_law
from planner.errors import FitError
from planner.recommendation.answer import TunedSetting
from planner.trial import TrialConfig, TrialResult

__all__ = ["Row", "rows_of", "swept_settings", "tune"]

Array = npt.NDArray[np.float64]

_MIN_ROWS: Final = 6
_MIN_VALUES: Final = 4
_MIN_EACH: Final = 3
"""Rates, and batches, of a sweep of both."""
_MIN_SIZES: Final = 3
_NEAR_BEST: Final = 0.10
"""Rows whose log loss is this much above the best of their size are off the parabola's bottom."""
_SIGNIFICANT: Final = 2.0
"""Standard errors from zero at which a curvature or a slope counts as seen."""
_TOLERANCE: Final = 0.0025
"""Of log loss: what the range around the best value costs at most."""
_EXPONENTS: Final = (-1.0, 0.3)
"""Exponents in N outside of these are noise: published ones lie between -0.9 and 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One finished trial: size, setting and what the law leaves unexplained of its log loss."""

    num_params: float
    value: float
    excess: float


def rows_of(
    trials: Sequence[tuple[TrialResult, TrialConfig]],
    law: ScalingLaw,
    sizes: Sequence[float],
    name: str,
) -> list[Row]:
    """Return the rows that a setting is read off.

    Args:
        trials: Completed trials with a loss.
        law: The fit.
        sizes: num_params of each trial, counted as the law counts.
        name: `learning_rate` or `tokens_per_step`.
    """
    rows = []
    for (trial, config), size in zip(trials, sizes, strict=True):
        expected = float(law.predict(size, float(trial.train_tokens or 0)).loss)
        value = (
            config.optimizer.learning_rate if name == "learning_rate" else config.tokens_per_step
        )
        rows.append(
            Row(
                num_params=size,
                value=float(value),
                excess=math.log((trial.val_loss or expected) / expected),
            )
        )
    return rows


def swept_settings(
    trials: Sequence[tuple[TrialResult, TrialConfig]],
    sizes: Sequence[float],
    num_params: float,
    num_tokens: float,
) -> tuple[TunedSetting, TunedSetting] | None:
    """Return rate and batch at a size and length by the law of both, or None.

    Both must have been swept together at two sizes or lengths at least (`fit_tuning_law`).
    """
    rates = np.array([config.optimizer.learning_rate for _, config in trials])
    batches = np.array([float(config.tokens_per_step) for _, config in trials])
    if min(len(np.unique(rates)), len(np.unique(batches))) < _MIN_EACH:
        return None
    grid = TuningGrid(
        num_params=np.array(sizes, float),
        num_tokens=np.array([float(trial.train_tokens or 0) for trial, _ in trials]),
        learning_rate=rates,
        tokens_per_step=batches,
        loss=np.array([trial.val_loss or math.nan for trial, _ in trials]),
    )
    try:
        law = fit_tuning_law(grid)
    except FitError:
        return None  # read off one by one, or the best trial's
    best = law.predict(num_params, num_tokens)

    def setting(name: str, row: int, value: float, tried: Array) -> TunedSetting:
        spread = _spread(float(law.curvature[row, row]))
        return TunedSetting(
            name=name, value=value, at_num_params=num_params,
            exponent=float(law.coefficients[row, 1]) if row == 0 else 0.0,
            lower=value / spread, upper=value * spread, tried_lower=float(tried.min()),
            tried_upper=float(tried.max()), num_trials=law.num_rows,
            method="law of rate and batch",
        )  # fmt: skip

    return (
        setting("learning_rate", 0, float(best.learning_rate), rates),
        setting("tokens_per_step", 1, float(best.tokens_per_step), batches),
    )


def tune(name: str, rows: Sequence[Row], best: float) -> TunedSetting:
    """Return the best value of a setting.

    Args:
        name: Of the setting.
        rows: Finished trials.
        best: The best trial's value, taken where the rows show no optimum.
    """
    values = sorted({row.value for row in rows})
    if len(values) < 2:
        return TunedSetting(name=name, value=best, num_trials=len(rows))
    near = _near_best(rows)
    fallback = TunedSetting(
        name=name, value=best, tried_lower=values[0], tried_upper=values[-1],
        num_trials=len(rows), method="best trial",
    )  # fmt: skip
    if len(near) < _MIN_ROWS or len({row.value for row in near}) < _MIN_VALUES:
        return fallback
    return _vertex(name, near, values) or fallback


def _near_best(rows: Sequence[Row]) -> list[Row]:
    least: dict[float, float] = {}
    for row in rows:
        least[row.num_params] = min(row.excess, least.get(row.num_params, math.inf))
    return [row for row in rows if row.excess <= least[row.num_params] + _NEAR_BEST]


def _vertex(name: str, rows: Sequence[Row], values: Sequence[float]) -> TunedSetting | None:
    """Return the vertex of the parabola, moving with size where that is seen, or None."""
    x = np.log([row.value for row in rows])
    n = np.log([row.num_params for row in rows])
    y = np.array([row.excess for row in rows])
    at_x, at_n = float(x.mean()), float(n.mean())
    x, n = x - at_x, n - at_n
    moves = False
    columns = [np.ones_like(x), x, x * x]
    if len(np.unique(n.round(2))) >= _MIN_SIZES and len(rows) >= _MIN_ROWS + 3:
        wide, errors = _robust_fit(np.stack([*columns, n, x * n], axis=1), y)
        moves = abs(wide[4]) > _SIGNIFICANT * errors[4] and wide[2] > _SIGNIFICANT * errors[2]
        if moves:
            coefficients = wide
    if not moves:
        coefficients, errors = _robust_fit(np.stack(columns, axis=1), y)
    curvature = float(coefficients[2])
    if curvature <= _SIGNIFICANT * errors[2]:
        return None
    exponent = -float(coefficients[4]) / (2 * curvature) if moves else 0.0
    exponent = min(max(exponent, _EXPONENTS[0]), _EXPONENTS[1])
    value = math.exp(at_x - float(coefficients[1]) / (2 * curvature))
    value = min(max(value, values[0]), values[-1])
    spread = _spread(curvature)
    return TunedSetting(
        name=name,
        value=value,
        at_num_params=math.exp(at_n) if moves else None,
        exponent=exponent,
        lower=value / spread,
        upper=value * spread,
        tried_lower=values[0],
        tried_upper=values[-1],
        num_trials=len(rows),
        method="power law" if moves else "quadratic",
    )


def _spread(curvature: float) -> float:
    """Return the factor by which a setting may be off for the tolerated loss."""
    return math.exp(math.sqrt(_TOLERANCE / curvature))


def _robust_fit(columns: Array, target: Array) -> tuple[Array, Array]:
    """Return Huber coefficients and their standard errors, by reweighted least squares."""
    weights = np.ones_like(target)
    for _ in range(30):
        root = np.sqrt(weights)[:, None]
        coefficients = np.linalg.lstsq(columns * root, target * root[:, 0], rcond=None)[0]
        residual = target - columns @ coefficients
        scale = 1.345 * max(robust_deviation(residual), 1e-9)
        weights = np.minimum(1.0, scale / np.maximum(np.abs(residual), 1e-12))
    freedom = max(len(target) - columns.shape[1], 1)
    variance = float((weights * residual**2).sum()) / freedom
    inverse = np.linalg.pinv((columns * weights[:, None]).T @ columns)
    errors = np.sqrt(np.maximum(np.diag(inverse) * variance, 1e-30))
    return np.asarray(coefficients, float), np.asarray(errors, float)
