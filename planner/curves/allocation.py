"""The best split of compute between parameters and tokens under a fitted law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.curves.arrays import FloatArray
from planner.curves.law import ScalingLaw
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
    center = sum(
        c.weight * np.log(optimal_params(c.params[None, :], train_flops)[0]) for c in law.components
    )
    draws = np.concatenate(
        [optimal_params(c.draws[:num], train_flops) for c, num in law.shares_of_draws()]
    )
    num_params = float(np.exp(center))
    low, high = np.quantile(draws[np.isfinite(draws)], [0.5 - 0.5 * share, 0.5 + 0.5 * share])
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
