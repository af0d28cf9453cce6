"""The reference law fitted with what is known of language models before any run of one's own.

Far beyond the table, the data of a few small trainings do not decide between laws that differ by
ten percent. Published laws agree much better on how fast loss falls than on any coefficient: the
prior is therefore put on ratios of losses along D = 20 N. It is free of the unit of the loss, and
a few hundred trainings outweigh it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.curves.arrays import FloatArray

__all__ = ["PRIOR", "AnchorPrior", "AnchoredFit", "fit_anchored", "tokens_per_param_weight"]

ANCHOR_PARAMS, ANCHOR_TOKENS = 1e8, 2e9
"""Where the terms are expanded: D = 20 N at the small end of language models."""

DECADE = float(np.log(10.0))

DEGREES_OF_FREEDOM = 4.0
"""Of the Student-t residual: a few failed trainings in a hundred do not move the fit."""

NOISE_FLOOR = 5e-3
"""The law itself is 0.2 to 0.6 percent off in the median wherever it was checked."""

TEMPER = 0.3
"""Residuals of an inexact law are alike for neighbouring trainings: three count as one."""

COMPUTE_POWER = 0.5
"""Points weigh as C^0.5: what is near the target says more about it than what is far."""

TOKENS_PER_PARAM, TOKENS_PER_PARAM_FACTOR = 20.0, 10.0
"""Half weight at ten times more or fewer tokens per parameter than compute-optimal: warm-up
dominates on one side, and the law bends on the other."""

MAX_ITERATIONS = 80
SCALE_ITERATIONS = 30
BATCH_ELEMENTS = 20_000
LARGEST_STEP = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorPrior:
    """(mean, standard deviation) of each thing known beforehand, in log units.

    From the laws of Hoffmann et al. 2022 (E 1.69, A 406.4, B 410.7, alpha 0.34, beta 0.28),
    Besiroglu et al. 2024 (1.8172, 482.01, 2085.43, 0.3478, 0.3658) and Muennighoff et al. 2023
    (1.869, 520.8, 1487.7, 0.3527 twice). Their log ratios of loss are 0.300, 0.307, 0.293 for
    the first decade and 0.190, 0.172, 0.163 for the second; the logs of the N term over the
    D term at N = 1e9 are -0.41, 0.00, 0.01. The deviations are several times theirs, since all
    three trained on much the same text.
    """

    first_decade: tuple[float, float] = (0.30, 0.06)
    """log L(1e8, 2e9) - log L(1e9, 2e10)."""
    second_decade: tuple[float, float] = (0.175, 0.05)
    """log L(1e9, 2e10) - log L(1e10, 2e11)."""
    balance: tuple[float, float] = (0.0, 1.0)
    """log of the N term over the D term at (1e9, 2e10): about 20 tokens per parameter is best."""
    alpha: tuple[float, float] = (0.35, 0.15)
    beta: tuple[float, float] = (0.35, 0.15)


PRIOR = AnchorPrior()


@dataclass(frozen=True, slots=True)
class AnchoredFit:
    """Parameters (E, A, B, alpha, beta), shape (batch, 5), objective (batch,), noise (batch,)."""

    params: FloatArray
    objective: FloatArray
    noise: FloatArray


@dataclass(slots=True)
class _State:
    """Where each row of the batch stands."""

    theta: FloatArray
    objective: FloatArray
    gradient: FloatArray
    hessian: FloatArray
    residual: FloatArray


class _Posterior:
    """Minus the log posterior of theta = (e, a, b, alpha, beta), its gradient and metric."""

    def __init__(
        self,
        num_params: FloatArray,
        num_tokens: FloatArray,
        loss: FloatArray,
        prior: AnchorPrior,
    ) -> None:
        self.x = np.log(num_params / ANCHOR_PARAMS)
        self.y = np.log(num_tokens / ANCHOR_TOKENS)
        self.target = np.log(loss)
        self.prior = prior
        self.centers, self.deviations = np.array(
            [
                prior.first_decade,
                prior.second_decade,
                prior.balance,
                prior.alpha,
                prior.beta,
            ]
        ).T

    def evaluate(
        self, theta: FloatArray, weights: FloatArray, noise: FloatArray, shift: FloatArray
    ) -> _State:
        log_loss, jacobian = _log_loss(theta, self.x, self.y)
        residual = log_loss - self.target
        nu, square = DEGREES_OF_FREEDOM, noise[:, None] ** 2
        relative = residual * residual / (nu * square)
        strength = weights * ((nu + 1) / nu) / (square * (1 + relative))
        prior_residual, prior_jacobian = self._prior(theta)
        prior_residual = prior_residual - shift
        objective = 0.5 * (nu + 1) * np.einsum("bi,bi->b", weights, np.log1p(relative))
        objective += weights.sum(axis=1) * np.log(noise)
        objective += 0.5 * (prior_residual**2).sum(axis=1)
        scaled = strength[:, None, :] * jacobian
        gradient = np.einsum("bpi,bi->bp", scaled, residual)
        gradient += np.einsum("bk,bkp->bp", prior_residual, prior_jacobian)
        hessian = scaled @ jacobian.transpose(0, 2, 1)
        hessian += prior_jacobian.transpose(0, 2, 1) @ prior_jacobian
        return _State(theta, objective, gradient, hessian, residual)

    def _prior(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return (what the prior speaks of - its mean) / deviation and its Jacobian."""
        decades = np.array([0.0, DECADE, 2 * DECADE])
        log_loss, jacobian = _log_loss(theta, decades, decades)
        balance_jacobian = np.array([0.0, 1.0, -1.0, -DECADE, DECADE])
        spoken = np.stack(
            [
                log_loss[:, 0] - log_loss[:, 1],
                log_loss[:, 1] - log_loss[:, 2],
                theta @ balance_jacobian,
                theta[:, 3],
                theta[:, 4],
            ],
            axis=1,
        )
        slopes = np.zeros((theta.shape[0], 5, 5))
        slopes[:, 0] = jacobian[:, :, 0] - jacobian[:, :, 1]
        slopes[:, 1] = jacobian[:, :, 1] - jacobian[:, :, 2]
        slopes[:, 2] = balance_jacobian
        slopes[:, 3, 3] = slopes[:, 4, 4] = 1.0
        return (spoken - self.centers) / self.deviations, slopes / self.deviations[:, None]


def _log_loss(theta: FloatArray, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return log L, shape (b, n), and its Jacobian, shape (b, 5, n)."""
    e = np.exp(theta[:, 0, None])
    u = np.exp(theta[:, 1, None] - theta[:, 3, None] * x)
    v = np.exp(theta[:, 2, None] - theta[:, 4, None] * y)
    s = e + u + v
    u /= s
    v /= s
    jacobian = np.stack([e / s, u, v, -u * x, -v * y], axis=1)
    return np.log(s), jacobian


def tokens_per_param_weight(tokens_per_param: FloatArray) -> FloatArray:
    """Return how well the law describes trainings of this D/N: 1 at 20, a half at 2 and 200."""
    off = np.log(tokens_per_param / TOKENS_PER_PARAM) / np.log(TOKENS_PER_PARAM_FACTOR)
    return np.asarray(1.0 / (1.0 + off * off))


def point_weights(
    num_params: FloatArray, num_tokens: FloatArray, train_flops: FloatArray
) -> FloatArray:
    """Return how much each point counts, with mean TEMPER, shape (n,)."""
    weights = (train_flops / train_flops.max()) ** COMPUTE_POWER
    weights = weights * tokens_per_param_weight(num_tokens / num_params)
    return np.asarray(TEMPER * weights / weights.mean())


def fit_anchored(
    num_params: FloatArray,
    num_tokens: FloatArray,
    loss: FloatArray,
    train_flops: FloatArray,
    *,
    num_draws: int = 0,
    seed: int = 0,
    prior: AnchorPrior = PRIOR,
) -> tuple[AnchoredFit, AnchoredFit | None]:
    """Return the most probable law, and draws around it.

    A draw refits the points with gamma weights (a Bayesian bootstrap of as many points as the
    tempering leaves) and a prior mean that is moved by its own deviation ("randomise, then
    optimise", Bardsley et al. 2014), so the draws hold both what the data and what the prior
    leave open.

    Args:
        num_params: N, shape (n,).
        num_tokens: D, shape (n,).
        loss: L, shape (n,).
        train_flops: C, shape (n,); decides the weights only.
        num_draws: Draws; zero for the fit alone.
        seed: Of the draws.
        prior: What is known beforehand.
    """
    posterior = _Posterior(num_params, num_tokens, loss, prior)
    weights = point_weights(num_params, num_tokens, train_flops)
    starts = _starts(posterior)
    one = np.broadcast_to(weights, (len(starts), weights.size))
    state, noise = _maximize(posterior, starts, one)
    best = [int(state.objective.argmin())]
    center = AnchoredFit(_natural(state.theta[best]), state.objective[best], noise[best])
    if not num_draws:
        return center, None
    generator = np.random.default_rng(seed)
    rows = max(1, BATCH_ELEMENTS // loss.size)
    parts = []
    for first in range(0, num_draws, rows):
        num = min(rows, num_draws - first)
        drawn = generator.gamma(TEMPER, 1 / TEMPER, size=(num, loss.size)) * weights
        parts.append(
            _maximize(
                posterior,
                np.repeat(state.theta[best], num, axis=0),
                drawn,
                noise=np.repeat(noise[best], num),
                shift=generator.standard_normal((num, 5)),
            )[0]
        )
    theta = np.concatenate([part.theta for part in parts])
    value = np.concatenate([part.objective for part in parts])
    return center, AnchoredFit(_natural(theta), value, np.repeat(noise[best], num_draws))


def _starts(posterior: _Posterior) -> FloatArray:
    """Return a few laws of different curvature, each through the middle of the points."""
    rows = []
    for share, alpha, beta in (
        (0.5, 0.35, 0.35),
        (0.4, 0.25, 0.25),
        (0.6, 0.5, 0.45),
        (0.3, 0.2, 0.35),
    ):
        rest = np.log((1 - share) / 2)
        theta = np.array([[np.log(share), rest, rest, alpha, beta]])
        log_loss, _ = _log_loss(theta, posterior.x, posterior.y)
        theta[:, :3] += np.median(posterior.target - log_loss)
        rows.append(theta[0])
    return np.array(rows)


def _maximize(
    posterior: _Posterior,
    theta: FloatArray,
    weights: FloatArray,
    *,
    noise: FloatArray | None = None,
    shift: FloatArray | None = None,
) -> tuple[_State, FloatArray]:
    """Levenberg-Marquardt on every row; the noise is estimated on the way unless given."""
    num = theta.shape[0]
    moves_noise = noise is None
    noise = np.full(num, 0.03) if noise is None else noise
    shift = np.zeros((num, 5)) if shift is None else shift
    damping = np.full(num, 1e-3)
    state = posterior.evaluate(theta, weights, noise, shift)
    for iteration in range(MAX_ITERATIONS):
        diagonal = np.einsum("bpp->bp", state.hessian) * damping[:, None]
        step = -np.linalg.solve(
            state.hessian + diagonal[:, :, None] * np.eye(5), state.gradient[:, :, None]
        )[:, :, 0]
        step = np.clip(step, -LARGEST_STEP, LARGEST_STEP)
        trial = posterior.evaluate(state.theta + step, weights, noise, shift)
        accepted = trial.objective <= state.objective
        for name in _State.__slots__:
            getattr(state, name)[accepted] = getattr(trial, name)[accepted]
        damping = np.where(accepted, np.maximum(0.2 * damping, 1e-9), 5.0 * damping)
        settled = np.abs(step).max() < 1e-7
        if moves_noise and iteration < SCALE_ITERATIONS and iteration % 2:
            noise = _rescale(state.residual, weights, noise)
            state = posterior.evaluate(state.theta, weights, noise, shift)
        elif settled or (damping > 1e12).all():
            break
    return state, noise


def _rescale(residual: FloatArray, weights: FloatArray, noise: FloatArray) -> FloatArray:
    """Return the scale of a Student-t sample, three fixed-point steps from the last one."""
    nu, total = DEGREES_OF_FREEDOM, weights.sum(axis=1)
    square = noise**2
    for _ in range(3):
        robust = weights * (nu + 1) / (nu + residual**2 / square[:, None])
        square = np.maximum(np.einsum("bi,bi->b", robust, residual**2) / total, NOISE_FLOOR**2)
    return np.asarray(np.sqrt(square))


def _natural(theta: FloatArray) -> FloatArray:
    e, a, b, alpha, beta = theta.T
    return np.stack(
        [
            np.exp(e),
            np.exp(a + alpha * np.log(ANCHOR_PARAMS)),
            np.exp(b + beta * np.log(ANCHOR_TOKENS)),
            alpha,
            beta,
        ],
        axis=1,
    )
