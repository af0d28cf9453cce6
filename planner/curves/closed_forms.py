"""What the reference law says in closed form, and the most tokens before a deadline."""

from __future__ import annotations

import numpy as np

from planner.curves.arrays import FloatArray
from planner.curves.checks import require_positive
from planner.curves.points import FLOPS_PER_PARAM_TOKEN
from planner.errors import FitError

__all__ = [
    "log_optimal_params",
    "max_tokens_by_deadline",
    "optimal_params",
    "overtraining_overhead",
]


def optimal_params(params: FloatArray, train_flops: float) -> FloatArray:
    """Return N* of L = E + A/N^alpha + B/D^beta at C = 6 N D, for each row of params.

    N* = G (C/6)^(beta/(alpha+beta)),  G = (alpha A / (beta B))^(1/(alpha+beta))

    Args:
        params: (E, A, B, alpha, beta, ...), shape (s, at least 5).
        train_flops: C.

    Source: Hoffmann et al. 2022 (arXiv:2203.15556), equation 4.

    >>> import numpy as np
    >>> float(optimal_params(np.array([[1.8, 400.0, 400.0, 0.3, 0.3]]), 6e18)[0].round())
    1000000000.0
    """
    return np.asarray(np.exp(log_optimal_params(params, train_flops)))


def log_optimal_params(params: FloatArray, train_flops: float) -> FloatArray:
    """Return the log of `optimal_params`: not finite where a term vanished or does not fall."""
    a, b, alpha, beta = params.T[1:5]
    # A and B of a steep draw reach 1e308: their products would overflow, their logs do not.
    with np.errstate(divide="ignore", invalid="ignore"):
        log_g = (np.log(alpha / beta) + np.log(a) - np.log(b)) / (alpha + beta)
        exponent = beta / (alpha + beta)
        return np.asarray(log_g + exponent * np.log(train_flops / FLOPS_PER_PARAM_TOKEN))


def overtraining_overhead(alpha: float, beta: float, size_ratio: float) -> tuple[float, float]:
    """Return (token ratio, compute ratio) at which a size k_N N* reaches the loss of N*.

    k_D = (1 - (beta/alpha) (k_N^-alpha - 1))^(-1/beta), compute ratio k_N k_D.

    Raises:
        ConfigError: An exponent or the ratio is not positive and finite.
        FitError: The model is so small that no amount of data suffices.

    Source: H. de Vries 2023, "Go smol or go home"; (A/B) G^-(alpha+beta) = beta/alpha.

    >>> [round(v, 3) for v in overtraining_overhead(0.34, 0.28, 0.5)]
    [2.416, 1.208]
    """
    require_positive(alpha=alpha, beta=beta, size_ratio=size_ratio)
    bracket = 1.0 - (beta / alpha) * (size_ratio**-alpha - 1.0)
    if bracket <= 0:
        smallest = (1.0 + alpha / beta) ** (-1.0 / alpha)
        raise FitError(
            f"no amount of data brings a model of {size_ratio:.3g} times the best size to its "
            f"loss: the ratio must exceed {smallest:.3g}."
        )
    tokens = bracket ** (-1.0 / beta)
    return tokens, size_ratio * tokens


def max_tokens_by_deadline(
    deadline_seconds: float, seconds_per_step: float, critical_batch_tokens: float
) -> float:
    """Return the most tokens that can be trained on usefully before a deadline.

    Steps are serial: beyond the critical batch, more tokens per step hardly save steps
    (McCandlish et al. 2018, arXiv:1812.06162), so D <= deadline / step time x critical batch.

    Raises:
        ConfigError: A quantity is not positive and finite.

    >>> max_tokens_by_deadline(86400, 0.5, 2e6)
    345600000000.0
    """
    require_positive(
        deadline_seconds=deadline_seconds,
        seconds_per_step=seconds_per_step,
        critical_batch_tokens=critical_batch_tokens,
    )
    return deadline_seconds / seconds_per_step * critical_batch_tokens
