"""Further forms of final loss, each one entry of the registry.

Pinned asymptote, Kaplan's, over-training, compute alone, mixture of experts, precision.
"""

from __future__ import annotations

import numpy as np

from planner.curves.arrays import LARGEST_LOG, FloatArray, safe_exp, safe_log
from planner.curves.forms import (
    Columns,
    CurveForm,
    Fitted,
    decode_surface,
    decode_with_logs,
    predict_coupled,
    predict_surface,
    register,
    robust_fit,
    surface_fit,
    surface_starts,
    with_tails,
)
from planner.curves.newton import Restriction
from planner.curves.points import Points
from planner.curves.surface import Objective, tied_exponents

__all__ = ["PINNED_LOSS", "pinned_form"]

PINNED_LOSS = 1.6
"""Nats per token. A pinned asymptote of 1.6 predicted better than a free one in
marin-community/marin issue 4447; Hoffmann et al. 2022 have 1.69."""


LARGEST = float(np.exp(LARGEST_LOG))
"""Of a coefficient: a term whose fit wandered off stays a number."""


def pinned_form(irreducible_loss: float) -> CurveForm:
    """Return the form with this asymptote, for `register` or for use on its own."""
    offset = np.array([0.0, 0.0, np.log(irreducible_loss), 0.0, 0.0])
    pinned = Restriction.placed([0, 1, -1, 2, 3], offset)

    def decode(theta: FloatArray, points: Points) -> FloatArray:
        given = np.full(len(theta), np.log(irreducible_loss))
        return decode_surface(np.column_stack([given, theta]), points)

    return CurveForm(
        name="pinned",
        equation=f"L = {irreducible_loss:g} + A/N^alpha + B/D^beta",
        source="Hoffmann et al. 2022 (arXiv:2203.15556), equation 2 with a given E",
        coefficients=("E", "A", "B", "alpha", "beta"),
        predict=predict_surface,
        fit=surface_fit(pinned),
        decode=decode,
        starts=lambda points: surface_starts(points)[:, [1, 2, 3, 4]],
        restriction=pinned,
    )


register(pinned_form(PINNED_LOSS))


def _decode_kaplan(theta: FloatArray, points: Points) -> FloatArray:
    """Theta = (a, b, alpha, log k) -> (E, A, B, alpha, beta, k) with E = 0 and beta = 1."""
    zeros, ones = np.full(len(theta), -np.inf), np.ones(len(theta))
    full = np.column_stack([zeros, theta[:, 0], theta[:, 1], theta[:, 2], ones])
    return np.column_stack([decode_surface(full, points), np.exp(theta[:, 3])])


def _kaplan_starts(points: Points) -> FloatArray:
    level = np.log(points.loss.mean())
    return np.array(
        [
            [level / k - 0.7, level / k - 0.7, alpha, np.log(k)]
            for k in (0.1, 0.2)
            for alpha in (0.4, 0.8)
        ]
    )


register(
    CurveForm(
        name="kaplan",
        equation="L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D, written as (A/N^alpha + B/D)^k",
        source="Kaplan et al. 2020 (arXiv:2001.08361), equation 1.5",
        coefficients=("E", "A", "B", "alpha", "beta", "k"),
        predict=predict_coupled,
        fit=robust_fit(predict_coupled, _decode_kaplan, _kaplan_starts),
        decode=_decode_kaplan,
        starts=_kaplan_starts,
    )
)


def predict_overtraining(params: FloatArray, columns: Columns) -> FloatArray:
    """Return L = E + (a M^eta + b M^-eta) C^-eta with M = D/N and C = 6 N D, shape (s, k)."""
    e, a, b, eta = (params[:, i, None] for i in range(4))
    log_m = np.log(columns["num_tokens"]) - np.log(columns["num_params"])
    log_c = np.log(6.0) + np.log(columns["num_params"]) + np.log(columns["num_tokens"])
    return np.asarray(
        e
        + safe_exp(safe_log(a) + eta * (log_m - log_c))
        + safe_exp(safe_log(b) - eta * (log_m + log_c))
    )


def _fit_overtraining(points: Points, objective: Objective, weights: FloatArray | None) -> Fitted:
    """Fit the surface with alpha = beta = 2 eta, and rename: C^-eta M^(+-eta) = 6^-eta (N|D)^-2eta."""
    params, value = surface_fit(tied_exponents())(points, objective, weights)
    return _renamed(params), value


def _renamed(params: FloatArray) -> FloatArray:
    e, a, b, alpha, _ = params.T
    eta = 0.5 * alpha
    with np.errstate(over="ignore"):
        terms = [np.minimum(term * 6.0**eta, LARGEST) for term in (a, b)]
    return np.stack([e, *terms, eta], axis=1)


def _decode_overtraining(theta: FloatArray, points: Points) -> FloatArray:
    return _renamed(decode_surface(theta[:, [0, 1, 2, 3, 3]], points))


register(
    CurveForm(
        name="overtraining",
        equation="L = E + (a M^eta + b M^-eta) C^-eta with M = D/N, C = 6 N D",
        source="Gadre et al. 2024 (arXiv:2403.08540), equation 4",
        coefficients=("E", "a", "b", "eta"),
        predict=predict_overtraining,
        fit=_fit_overtraining,
        decode=_decode_overtraining,
        starts=lambda points: surface_starts(points)[1:, :4],
        has_surface_optimum=False,
    )
)


def predict_compute(params: FloatArray, columns: Columns) -> FloatArray:
    """Return L = E + K C^-gamma with C = 6 N D, shape (s, k)."""
    e, k, gamma = (params[:, i, None] for i in range(3))
    log_c = np.log(6.0) + np.log(columns["num_params"]) + np.log(columns["num_tokens"])
    return np.asarray(e + safe_exp(safe_log(k) - gamma * log_c))


def _decode_compute(theta: FloatArray, points: Points) -> FloatArray:
    center = np.log(6.0) + np.log(points.num_params * points.num_tokens).mean()
    return np.column_stack(
        [np.exp(theta[:, 0]), np.exp(theta[:, 1] + theta[:, 2] * center), theta[:, 2]]
    )


def _compute_starts(points: Points) -> FloatArray:
    level = points.loss.mean()
    return np.array(
        [[np.log(share * level), np.log((1 - share) * level), gamma]
         for share in (0.2, 0.5, 0.8) for gamma in (0.05, 0.15, 0.3)]
    )  # fmt: skip


register(
    CurveForm(
        name="compute",
        equation="L = E + K C^-gamma with C = 6 N D",
        source="Kaplan et al. 2020 (arXiv:2001.08361), equation 1.3, with an asymptote",
        coefficients=("E", "K", "gamma"),
        predict=predict_compute,
        fit=robust_fit(predict_compute, _decode_compute, _compute_starts),
        decode=_decode_compute,
        starts=_compute_starts,
        min_distinct={"compute_flops": 3},
        has_surface_optimum=False,
    )
)


def predict_sparsity(params: FloatArray, columns: Columns) -> FloatArray:
    """Return Abnar et al.'s loss of a mixture of experts of sparsity S = inactive share.

    L = e + a/N^alpha + b/D^beta + c/(1-S)^lam + d/((1-S)^delta N^gamma)
    """
    e, a, b, alpha, beta, c, lam, d, delta, gamma = (params[:, i, None] for i in range(10))
    log_n, log_d = np.log(columns["num_params"]), np.log(columns["num_tokens"])
    log_active = np.log1p(-columns["sparsity_fraction"])
    return np.asarray(
        e
        + safe_exp(safe_log(a) - alpha * log_n)
        + safe_exp(safe_log(b) - beta * log_d)
        + safe_exp(safe_log(c) - lam * log_active)
        + safe_exp(safe_log(d) - delta * log_active - gamma * log_n)
    )


def _decode_sparsity(theta: FloatArray, points: Points) -> FloatArray:
    x = float(np.log(points.num_params).mean())
    tail = theta[:, 5:].copy()
    tail[:, 0] = np.exp(theta[:, 5])
    tail[:, 2] = np.exp(theta[:, 7] + theta[:, 9] * x)
    return np.column_stack([decode_surface(theta[:, :5], points), tail])


def _sparsity_starts(points: Points) -> FloatArray:
    small = np.log(0.02 * points.loss.mean())
    tails = ([small, 0.2, small, 0.3, 0.2], [small, -0.2, small, 0.5, 0.4])
    return with_tails(surface_starts(points), tails)


register(
    CurveForm(
        name="sparsity",
        equation="L = e + a/N^alpha + b/D^beta + c/(1-S)^lam + d/((1-S)^delta N^gamma)",
        source="Abnar et al. 2025 (arXiv:2501.12370), equation 4",
        coefficients=("e", "a", "b", "alpha", "beta", "c", "lam", "d", "delta", "gamma"),
        predict=predict_sparsity,
        fit=robust_fit(predict_sparsity, _decode_sparsity, _sparsity_starts),
        decode=_decode_sparsity,
        starts=_sparsity_starts,
        columns=("num_params", "num_tokens", "sparsity_fraction"),
        min_distinct={"num_params": 3, "num_tokens": 3, "sparsity_fraction": 3},
        has_surface_optimum=False,
    )
)


def predict_precision(params: FloatArray, columns: Columns) -> FloatArray:
    """Return the loss of training in P_w bits of weights and P_a bits of activations.

    L = E + A/N_eff^alpha + B/D^beta,  N_eff = N (1 - exp(-P_w/gamma_w)) (1 - exp(-P_a/gamma_a))
    """
    share = -np.expm1(-columns["weight_bits"] / params[:, 5, None])
    share = share * -np.expm1(-columns["activation_bits"] / params[:, 6, None])
    e, a, b, alpha, beta = (params[:, i, None] for i in range(5))
    log_n = np.log(columns["num_params"]) + np.log(share)
    return np.asarray(
        e
        + safe_exp(safe_log(a) - alpha * log_n)
        + safe_exp(safe_log(b) - beta * np.log(columns["num_tokens"]))
    )


def _precision_starts(points: Points) -> FloatArray:
    return with_tails(surface_starts(points), [[np.log(g)] * 2 for g in (1.0, 2.5, 6.0)])


register(
    CurveForm(
        name="precision",
        equation="L = E + A/N_eff^alpha + B/D^beta, N_eff = N prod_x (1 - exp(-P_x/gamma_x))",
        source="Kumar et al. 2024 (arXiv:2411.04330), equations 3 and 4",
        coefficients=("E", "A", "B", "alpha", "beta", "gamma_weights", "gamma_activations"),
        predict=predict_precision,
        fit=robust_fit(predict_precision, decode_with_logs, _precision_starts),
        decode=decode_with_logs,
        starts=_precision_starts,
        columns=("num_params", "num_tokens", "weight_bits", "activation_bits"),
        min_distinct={"num_params": 3, "num_tokens": 3, "weight_bits": 2, "activation_bits": 2},
        has_surface_optimum=False,
    )
)


def predict_post_training(params: FloatArray, columns: Columns) -> FloatArray:
    """Return the loss after quantising a trained model to P_post bits.

    L = E + A/N^alpha + B/D^beta + C_T D^gamma_D / N^gamma_N exp(-P_post/gamma_post)
    """
    scale, gamma_d, gamma_n, gamma_post = (params[:, i, None] for i in range(5, 9))
    log_n, log_d = np.log(columns["num_params"]), np.log(columns["num_tokens"])
    bits = columns["post_training_bits"] / gamma_post
    added = safe_exp(safe_log(scale) + gamma_d * log_d - gamma_n * log_n - bits)
    return np.asarray(predict_surface(params[:, :5], columns) + added)


def _decode_post_training(theta: FloatArray, points: Points) -> FloatArray:
    x, y = np.log(points.num_params).mean(), np.log(points.num_tokens).mean()
    scale = np.exp(theta[:, 5] - theta[:, 6] * y + theta[:, 7] * x)
    return np.column_stack(
        [decode_surface(theta[:, :5], points), scale, theta[:, 6:8], np.exp(theta[:, 8])]
    )


def _post_training_starts(points: Points) -> FloatArray:
    tails = [[1.0, 0.5, 0.5, np.log(g)] for g in (0.5, 1.0, 2.0)]
    return with_tails(surface_starts(points), tails)


register(
    CurveForm(
        name="post-training-precision",
        equation="L = E + A/N^alpha + B/D^beta + C_T D^gamma_D/N^gamma_N exp(-P_post/gamma_post)",
        source="Kumar et al. 2024 (arXiv:2411.04330), equation 2",
        coefficients=(
            "E", "A", "B", "alpha", "beta", "C_T", "gamma_D", "gamma_N", "gamma_post",
        ),
        predict=predict_post_training,
        fit=robust_fit(predict_post_training, _decode_post_training, _post_training_starts),
        decode=_decode_post_training,
        starts=_post_training_starts,
        columns=("num_params", "num_tokens", "post_training_bits"),
        min_distinct={"num_params": 3, "num_tokens": 3, "post_training_bits": 3},
        has_surface_optimum=False,
    )
)  # fmt: skip
