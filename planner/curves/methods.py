"""The best size by each method, side by side: surface, IsoFLOP profiles, envelope.

They err differently, so where several answer, the size recommended by a mixture is their geometric mean
and their disagreement is part of its interval (`allocation.best_log_params`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.curves.allocation import best_log_params
from planner.curves.arrays import FloatArray
from planner.curves.checks import require_level, require_positive
from planner.curves.closed_forms import log_optimal_params
from planner.curves.diagnosis import LOOK_AHEAD
from planner.curves.envelope import fit_envelope
from planner.curves.forms import find_form
from planner.curves.isoflop import IsoflopProfile, SizeFrontier, fit_frontier, size_of
from planner.curves.law import ScalingLaw
from planner.curves.points import Points
from planner.errors import FitError

__all__ = ["SizeByMethod", "best_sizes", "size_frontiers"]

NO_LOSSES = (
    "the table has no losses during training: it takes the reports of a run folder, or several "
    "rows of one run with its learning_rate or schedule"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeByMethod:
    """What one method says of the best size N* at a budget, N* ~ C^exponent."""

    method: str
    """`surface`, `isoflop`, `envelope`, or `recommended`: their mean, or a single form's surface."""
    train_flops: float
    num_params: float | None = None
    num_params_lower: float | None = None
    num_params_upper: float | None = None
    exponent: float | None = None
    exponent_lower: float | None = None
    exponent_upper: float | None = None
    refusal: str | None = None
    """Why it says nothing; absent when it does."""


def size_frontiers(
    points: Points, profiles: Sequence[IsoflopProfile]
) -> tuple[dict[str, SizeFrontier], dict[str, str]]:
    """Return the power laws of the best size that need no law of loss, and why others are absent."""
    found: dict[str, SizeFrontier] = {}
    refused: dict[str, str] = {}
    try:
        found["isoflop"] = fit_frontier(tuple(profiles))
    except FitError as error:
        refused["isoflop"] = error.message
    losses = points.stable
    if losses is None:
        refused["envelope"] = NO_LOSSES
    elif not losses.loss.size:
        refused["envelope"] = f"no loss during training is comparable: {losses}"
    else:
        try:
            found["envelope"] = fit_envelope(
                losses.train_flops, losses.loss, losses.num_params, losses.run
            ).frontier
        except FitError as error:
            refused["envelope"] = error.message
    return found, refused


def best_sizes(
    law: ScalingLaw, train_flops: float | None = None, *, level: float | None = None
) -> tuple[SizeByMethod, ...]:
    """Return what each method says of the best size at a budget, and what is recommended.

    Args:
        law: A law; what its table lacks for a method is said in the method's row.
        train_flops: The budget; absent means ten times the largest compute of the table.
        level: Of the intervals; absent means the level of the fit.

    Raises:
        ConfigError: The budget is not positive and finite, or the level is not in (0, 1).
    """
    if train_flops is None:
        train_flops = LOOK_AHEAD * law.fitted_range.train_flops[1]
    require_positive(train_flops=train_flops)
    share = law.level if level is None else require_level(level)
    rows = [_surface(law, train_flops, share)]
    for method in sorted({*law.frontiers, *law.refusals}, reverse=True):
        if method in law.refusals:
            refusal = law.refusals[method]
            rows.append(SizeByMethod(method=method, train_flops=train_flops, refusal=refusal))
            continue
        frontier = law.frontiers[method]
        size, low, high = frontier.size_interval(train_flops, share)
        least, most = frontier.exponent_interval(share)
        rows.append(
            SizeByMethod(
                method=method,
                train_flops=train_flops,
                num_params=size,
                num_params_lower=low,
                num_params_upper=high,
                exponent=frontier.slope,
                exponent_lower=least,
                exponent_upper=most,
            )
        )
    return tuple(rows) if rows[0].refusal else (*rows, _recommended(law, train_flops, share))


def _surface(law: ScalingLaw, train_flops: float, level: float) -> SizeByMethod:
    lead = law.components[0]
    if not find_form(lead.form).has_surface_optimum:
        refusal = f"form {lead.form} does not say how to split compute between size and tokens"
        return SizeByMethod(method="surface", train_flops=train_flops, refusal=refusal)
    draws = np.concatenate([c.draws[:num, :5] for c, num in law.shares_of_draws()])
    sizes = np.concatenate([lead.params[None, :5], draws])
    with np.errstate(divide="ignore", invalid="ignore"):
        exponents = sizes[:, 4] / (sizes[:, 3] + sizes[:, 4])
    log_n = log_optimal_params(sizes, train_flops)
    if not np.isfinite([log_n[0], exponents[0]]).all():
        refusal = "the fitted law has no best size: one of its terms vanished"
        return SizeByMethod(method="surface", train_flops=train_flops, refusal=refusal)
    row = _of_draws("surface", train_flops, log_n, level)
    middle, low, high = _interval(exponents, level)
    return replace(row, exponent=middle, exponent_lower=low, exponent_upper=high)


def _recommended(law: ScalingLaw, train_flops: float, level: float) -> SizeByMethod:
    center, draws = best_log_params(law, train_flops)
    return _of_draws("recommended", train_flops, np.concatenate([[center], draws]), level)


def _of_draws(method: str, train_flops: float, log_n: FloatArray, level: float) -> SizeByMethod:
    """Return a row from the log of an estimate, which comes first, and of its draws."""
    middle, low, high = size_of(_interval(log_n, level))
    return SizeByMethod(
        method=method,
        train_flops=train_flops,
        num_params=float(middle),
        num_params_lower=float(low),
        num_params_upper=float(high),
    )


def _interval(values: FloatArray, level: float) -> tuple[float, float, float]:
    """Return an estimate, which comes first, and the interval of its draws around it."""
    middle, draws = float(values[0]), values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(draws, [0.5 - 0.5 * level, 0.5 + 0.5 * level])
    return middle, min(float(low), middle), max(float(high), middle)
