"""The best split of compute between parameters and tokens under a fitted law.

In closed form where only compute limits; by a bounded search over sizes where data, demand for
inference, a largest size or a largest number of tokens do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.curves.arrays import FloatArray, standard_noise
from planner.curves.checks import require_level, require_positive
from planner.curves.closed_forms import log_optimal_params
from planner.curves.forms import find_form, predict_surface
from planner.curves.isoflop import size_of
from planner.curves.law import ScalingLaw
from planner.curves.points import FLOPS_PER_PARAM_TOKEN
from planner.curves.repeated import PUBLISHED_REPETITION, effective_columns, predict_repeated
from planner.errors import FitError

__all__ = [
    "Allocation",
    "allocation_for_loss",
    "best_log_params",
    "optimal_allocation",
]

INFERENCE_FLOPS_PER_PARAM_TOKEN = 2.0
"""Forward pass only (Sardana et al. 2024, arXiv:2401.00448, section 2)."""

SEARCH_POINTS = 801
SEARCH_FACTOR = 1e4
"""Sizes are searched within this factor of the unlimited optimum, on either side."""

SEARCH_DRAWS = 200

REPETITION_DEVIATION = 0.8
"""Of log R_D* around the published value: its interval spans a factor of ten and more
(docs/curves.md, repeated data)."""

LARGEST_FLOPS = 1e32

MOST_FOR_INFERENCE = 0.99
"""Share of the budget that inference may take: something must train."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Size and tokens that the law expects to be best, each with its interval."""

    train_flops: float
    """Spent on training: 6 N D."""
    num_params: float
    num_params_lower: float
    num_params_upper: float
    num_tokens: float
    num_tokens_lower: float
    num_tokens_upper: float
    loss: float
    loss_lower: float
    loss_upper: float
    level: float
    num_epochs: float = 1.0
    """Times that each distinct token is seen; 1 where no limit of data was given."""
    binding: tuple[str, ...] = ()
    """Which limits hold the optimum where it is: data, inference, max_num_params,
    max_num_tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    unique_tokens: float | None
    inference_tokens: float
    max_num_params: float | None
    max_num_tokens: float | None

    @property
    def bend_the_law(self) -> bool:
        """Whether they change the loss or the price of a size, beyond cutting sizes off."""
        return self.inference_tokens > 0 or self.unique_tokens is not None


def optimal_allocation(
    law: ScalingLaw,
    train_flops: float,
    *,
    unique_tokens: float | None = None,
    inference_tokens: float = 0.0,
    max_num_params: float | None = None,
    max_num_tokens: float | None = None,
    level: float | None = None,
) -> Allocation:
    """Return the size and tokens of least loss.

    Args:
        law: A law with a size-token trade-off.
        train_flops: The budget. With `inference_tokens` it pays for both:
            6 N D + 2 N D_inference.
        unique_tokens: Distinct tokens there are; beyond them tokens repeat and are worth less
            (Muennighoff et al. 2023, with the law's own constants if it has form `repeated`).
        inference_tokens: Tokens that the model will serve in its lifetime.
        max_num_params: No larger model, e.g. for memory or latency.
        max_num_tokens: No more tokens, e.g. `max_tokens_by_deadline`.
        level: Of the intervals.

    Raises:
        ConfigError: A quantity is not positive and finite, or the level is not in (0, 1).
        FitError: The form has no size-token trade-off, or the limits leave nothing.
    """
    share = law.level if level is None else require_level(level)
    require_positive(
        train_flops=train_flops,
        unique_tokens=unique_tokens,
        max_num_params=max_num_params,
        max_num_tokens=max_num_tokens,
        inference_tokens=inference_tokens or None,
    )
    limits = _Limits(
        unique_tokens=unique_tokens,
        inference_tokens=inference_tokens,
        max_num_params=max_num_params,
        max_num_tokens=max_num_tokens,
    )
    center, draws = best_log_params(law, train_flops)
    if limits.bend_the_law:
        center, draws = _search(law, train_flops, limits, center, draws)
    low, high = _log_bounds(train_flops, limits)
    low = min(low, high)
    center, draws = float(np.clip(center, low, high)), np.clip(draws, low, high)
    return _allocation(law, train_flops, limits, center, draws, share)


def _log_bounds(flops: float, limits: _Limits) -> tuple[float, float]:
    """Return the least and largest log N: fewer tokens than allowed at the one, some at the other.

    Loss falls with N at given tokens, so where tokens are limited the budget buys size.
    """
    served = INFERENCE_FLOPS_PER_PARAM_TOKEN * limits.inference_tokens
    low, high = -np.inf, np.inf
    if limits.max_num_tokens is not None:
        low = np.log(flops / (FLOPS_PER_PARAM_TOKEN * limits.max_num_tokens + served))
    if served > 0:
        high = np.log(MOST_FOR_INFERENCE * flops / served)
    if limits.max_num_params is not None:
        high = min(high, np.log(limits.max_num_params))
    return float(low), float(high)


def best_log_params(law: ScalingLaw, train_flops: float) -> tuple[float, FloatArray]:
    """Return log of the compute-optimal size and draws of it.

    The leading form, the IsoFLOP frontier and the envelope err differently: under a mixture the mean
    of those that exist is taken, and each gives as many draws, so that their disagreement widens the
    interval. A single form that was asked for stands alone.

    Raises:
        FitError: The form has no size-token trade-off, or one of its terms vanished.
    """
    lead = law.components[0]
    if not find_form(lead.form).has_surface_optimum:
        raise FitError(
            f"form {lead.form} does not say how to split compute between size and tokens.",
            hint="Fit the form 'mixture' or 'chinchilla'.",
        )
    center = float(log_optimal_params(lead.params[None], train_flops)[0])
    draws = np.concatenate(
        [log_optimal_params(c.draws[:num], train_flops) for c, num in law.shares_of_draws()]
    )
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(center) or draws.size == 0:
        raise _vanished()
    if not law.frontiers or law.form != "mixture":
        return center, draws
    centers, parts = [center], [draws[:: 1 + len(law.frontiers)]]
    for number, frontier in enumerate(law.frontiers.values()):
        log_size, deviation = frontier.log_best_params(train_flops)
        centers.append(log_size)
        parts.append(log_size + deviation * standard_noise(parts[0].size, law.seed + number))
    return float(np.mean(centers)), np.concatenate(parts)


def _vanished() -> FitError:
    return FitError(
        "the fitted law has no best size: one of its terms vanished.",
        hint="Add trainings that differ in both num_params and num_tokens.",
    )


def _search(
    law: ScalingLaw, flops: float, limits: _Limits, center: float, draws: FloatArray
) -> tuple[float, FloatArray]:
    """Return log of the best size under limits, and draws of it.

    The unlimited optimum of each draw is moved by what the limits do to its surface: the shift
    is searched on the leading form, so that what the frontier says is kept.
    """
    lead = law.components[0]
    sound = lead.draws[np.isfinite(log_optimal_params(lead.draws, flops))]
    num = min(SEARCH_DRAWS, len(sound), draws.size)
    if num == 0:
        raise _vanished()
    rows = np.concatenate([lead.params[None], sound[:num]])
    unlimited = log_optimal_params(rows, flops)
    middle = np.clip(unlimited, center - 4, center + 4)[:, None]
    log_n = middle + np.linspace(-1, 1, SEARCH_POINTS) * np.log(SEARCH_FACTOR)
    sizes = size_of(log_n)
    tokens = _affordable_tokens(sizes, flops, limits)
    value = _limited_loss(rows, sizes, tokens, limits, law)
    if not np.isfinite(value).any(axis=1).all():
        raise FitError("the limits leave no size that the budget can train: relax one of them.")
    best = log_n[np.arange(len(rows)), value.argmin(axis=1)]
    shift = best - unlimited
    thinned = draws[:: max(1, draws.size // num)][:num]
    return float(center + shift[0]), thinned + shift[1 : 1 + thinned.size]


def _affordable_tokens(num_params: FloatArray, flops: float, limits: _Limits) -> FloatArray:
    served = INFERENCE_FLOPS_PER_PARAM_TOKEN * num_params * limits.inference_tokens
    tokens = (flops - served) / (FLOPS_PER_PARAM_TOKEN * num_params)
    if limits.max_num_tokens is not None:
        tokens = np.minimum(tokens, limits.max_num_tokens)
    return tokens


def _limited_loss(
    rows: FloatArray, num_params: FloatArray, tokens: FloatArray, limits: _Limits, law: ScalingLaw
) -> FloatArray:
    """Return loss of the surface, shape (s, k), infinite where the budget buys no token.

    An outer exponent of the form moves no optimum and is left out.
    """
    columns = {"num_params": num_params, "num_tokens": np.maximum(tokens, 1.0)}
    if limits.unique_tokens is None:
        loss = predict_surface(rows[:, :5], columns)
    else:
        columns["unique_tokens"] = np.array(limits.unique_tokens)
        loss = predict_repeated(np.column_stack([rows[:, :5], _repetition(rows, law)]), columns)
    return np.where(tokens >= 1.0, loss, np.inf)


def _repetition(rows: FloatArray, law: ScalingLaw) -> FloatArray:
    """Return (R_D*, R_N*) of every row: the law's own, or published ones with their spread."""
    if law.components[0].form == "repeated":
        return rows[:, 5:7]
    noise = standard_noise(len(rows) - 1, law.seed + 1) if len(rows) > 1 else np.empty(0)
    factor = np.exp(REPETITION_DEVIATION * np.concatenate([[0.0], noise]))
    return np.column_stack([PUBLISHED_REPETITION[0] * factor, PUBLISHED_REPETITION[1] / factor])


def _allocation(
    law: ScalingLaw,
    flops: float,
    limits: _Limits,
    center: float,
    draws: FloatArray,
    level: float,
) -> Allocation:
    low, high = np.quantile(draws, [0.5 - 0.5 * level, 0.5 + 0.5 * level])
    sizes = size_of([center, min(low, center), max(high, center)])
    tokens = _affordable_tokens(sizes, flops, limits)
    epochs = 1.0 if limits.unique_tokens is None else max(1.0, tokens[0] / limits.unique_tokens)
    loss = _loss_at(law, sizes[0], tokens[0], limits, level)
    binding = {
        "data": epochs > 1.0,
        "inference": limits.inference_tokens > 0,
        "max_num_params": limits.max_num_params is not None
        and sizes[0] >= 0.999 * limits.max_num_params,
        "max_num_tokens": limits.max_num_tokens is not None
        and tokens[0] >= 0.999 * limits.max_num_tokens,
    }
    return Allocation(
        train_flops=float(FLOPS_PER_PARAM_TOKEN * sizes[0] * tokens[0]),
        num_params=float(sizes[0]),
        num_params_lower=float(sizes[1]),
        num_params_upper=float(sizes[2]),
        num_tokens=float(tokens[0]),
        num_tokens_lower=float(min(tokens[2], tokens[0])),
        num_tokens_upper=float(max(tokens[1], tokens[0])),
        loss=loss[0],
        loss_lower=loss[1],
        loss_upper=loss[2],
        level=level,
        num_epochs=float(epochs),
        binding=tuple(name for name, holds in binding.items() if holds),
    )


def _loss_at(
    law: ScalingLaw, num_params: float, num_tokens: float, limits: _Limits, level: float
) -> tuple[float, float, float]:
    """Return predicted loss with its interval; repeated tokens count as fewer fresh ones."""
    lead = law.components[0]
    unique = num_tokens if limits.unique_tokens is None else limits.unique_tokens
    if lead.form == "repeated" or num_tokens <= unique:
        extra = {"unique_tokens": unique} if lead.form == "repeated" else {}
        p = law.predict(num_params, num_tokens, level=level, **extra)
        return float(p.loss), float(p.loss_lower), float(p.loss_upper)
    rows = np.repeat(lead.params[None], 201, axis=0)
    columns = {"num_params": np.array([num_params]), "num_tokens": np.array([num_tokens])}
    repeated = np.column_stack([rows[:, :5], _repetition(rows, law)])
    effective = effective_columns(repeated, columns | {"unique_tokens": np.array([unique])})
    losses = find_form(lead.form).predict(rows, effective)[:, 0]
    fresh = law.predict(num_params, num_tokens, level=level)
    tails = np.quantile(losses[1:], [0.5 - 0.5 * level, 0.5 + 0.5 * level]) / losses[0]
    value = losses[0] * float(fresh.loss) / float(np.exp(lead.log_loss(columns)[0]))
    below = np.hypot(np.log(fresh.loss / fresh.loss_lower), np.log(1 / min(tails[0], 1.0)))
    above = np.hypot(np.log(fresh.loss_upper / fresh.loss), np.log(max(tails[1], 1.0)))
    return float(value), float(value * np.exp(-below)), float(value * np.exp(above))


def allocation_for_loss(law: ScalingLaw, loss: float, *, level: float | None = None) -> Allocation:
    """Return the cheapest training that reaches a loss.

    Raises:
        ConfigError: The loss is not positive and finite.
        FitError: The loss is at or below the irreducible loss of the law.
    """
    require_positive(loss=loss)
    low, high = 1e9, LARGEST_FLOPS
    if optimal_allocation(law, high, level=level).loss > loss:
        raise FitError(
            f"no training reaches a loss of {loss:g}: the law's irreducible loss is "
            f"{law.irreducible_loss.value:.4g}.",
            hint="Aim at a higher loss, or check the law with runs nearer to the target.",
        )
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        if optimal_allocation(law, middle, level=level).loss > loss:
            low = middle
        else:
            high = middle
        if high / low < 1.001:
            break
    return optimal_allocation(law, high, level=level)
