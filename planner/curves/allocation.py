"""The best split of compute between parameters and tokens under a fitted law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.curves.arrays import FloatArray
from planner.curves.law import ScalingLaw, standard_noise
from planner.curves.points import FLOPS_PER_PARAM_TOKEN
from planner.errors import ConfigError

__all__ = ["Allocation", "optimal_allocation"]

INFERENCE_FLOPS_PER_PARAM_TOKEN = 2.0
"""Forward pass only (Sardana et al. 2024, arXiv:2401.00448, section 2)."""

SEARCH_POINTS = 2_001


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Size and tokens that the law expects to be best, each with its interval."""

    train_flops: float
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
    binding: tuple[str, ...] = ()
    """Which limits hold the optimum where it is."""


def optimal_params(params: FloatArray, train_flops: float) -> FloatArray:
    """Return N* of L = E + A/N^alpha + B/D^beta at C = 6 N D, for each row of params.

    N* = G (C/6)^(beta/(alpha+beta)),  G = (alpha A / (beta B))^(1/(alpha+beta))

    Args:
        params: (E, A, B, alpha, beta), shape (s, 5).
        train_flops: C.

    Source: Hoffmann et al. 2022 (arXiv:2203.15556), equation 4.

    >>> import numpy as np
    >>> float(optimal_params(np.array([[1.8, 400.0, 400.0, 0.3, 0.3]]), 6e18)[0].round())
    1000000000.0
    """
    a, b, alpha, beta = params.T[1:5]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_g = np.log(alpha * a / (beta * b)) / (alpha + beta)
        exponent = beta / (alpha + beta)
        return np.asarray(np.exp(log_g + exponent * np.log(train_flops / FLOPS_PER_PARAM_TOKEN)))


def best_log_params(law: ScalingLaw, train_flops: float) -> tuple[float, FloatArray]:
    """Return log of the compute-optimal size and draws of it.

    The leading form and the IsoFLOP frontier err differently: where both exist their mean is
    taken, and half of the draws come from each, so that their disagreement widens the interval.
    """
    lead = law.components[0]
    center = float(np.log(optimal_params(lead.params[None, :5], train_flops)[0]))
    draws = np.concatenate(
        [np.log(optimal_params(c.draws[:num, :5], train_flops)) for c, num in law.shares_of_draws()]
    )
    draws = draws[np.isfinite(draws)]
    if law.frontier is None or law.form != "mixture":
        return center, draws
    log_size, deviation = law.frontier.log_best_params(train_flops)
    half = draws[::2]
    other = log_size + deviation * standard_noise(half.size, law.seed)
    return 0.5 * (center + log_size), np.concatenate([half, other])


def optimal_allocation(
    law: ScalingLaw, train_flops: float, *, level: float | None = None
) -> Allocation:
    """Return the compute-optimal size and tokens.

    Raises:
        ConfigError: train_flops is not positive and finite.
    """
    if not (np.isfinite(train_flops) and train_flops > 0):
        raise ConfigError(f"train_flops must be positive and finite: got {train_flops}.")
    share = law.level if level is None else level
    center, draws = best_log_params(law, train_flops)
    num_params = float(np.exp(center))
    low, high = np.exp(np.quantile(draws, [0.5 - 0.5 * share, 0.5 + 0.5 * share]))
    tokens = train_flops / FLOPS_PER_PARAM_TOKEN / np.array([num_params, high, low])
    prediction = law.predict(num_params, tokens[0], level=share)
    return Allocation(
        train_flops=float(train_flops),
        num_params=num_params,
        num_params_lower=float(min(low, num_params)),
        num_params_upper=float(max(high, num_params)),
        num_tokens=float(tokens[0]),
        num_tokens_lower=float(min(tokens[1], tokens[0])),
        num_tokens_upper=float(max(tokens[2], tokens[0])),
        loss=float(prediction.loss),
        loss_lower=float(prediction.loss_lower),
        loss_upper=float(prediction.loss_upper),
        level=share,
    )
