"""The reference law fitted with what is known of language models before any run of one's own.

Far beyond the table, the data of a few small trainings do not decide between laws that differ by
ten percent. Published laws agree much better on how fast loss falls than on any coefficient: the
prior is therefore put on ratios of losses along D = 20 N. It is free of the unit of the loss, and
a few hundred trainings outweigh it.

How much each training should count is not known either. Instead of choosing, a law is fitted under
each of sixteen weightings, low and high in four respects, and their predictions are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

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

TEMPER = (0.15, 0.6)
"""Residuals of an inexact law are alike for neighbouring trainings: two to seven count as one."""

COMPUTE_POWER = (0.0, 0.5)
"""Points weigh as C to this power: what is near the target says more about it than what is far."""

TOKENS_PER_PARAM = 20.0
TOKENS_PER_PARAM_FACTOR = (5.0, 20.0)
"""Half weight at so many times more or fewer tokens per parameter than compute-optimal: few steps
per parameter on one side, and the law bends on the other."""

SHORT_TOKENS = (6e8, 6e9)
"""Half weight at so many tokens, falling as D^2: in the first few thousand steps, warm-up and all,
loss falls steeper than any law of D does later."""

DRAW_SCALE = 0.7
"""How far out a draw is kept: with most of the data tempered away the draws overstate the doubt;
errors on families of public sweeps came to 0.3 to 0.9 of it (docs/curves.md)."""

SURFACE_SIDE, SURFACE_REACH = 8, 100.0
"""The mean law is matched on so many sizes by token counts, up to so far beyond the table."""

SURFACE_ITERATIONS = 12
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
    three trained on much the same text: they are those between unrelated sweeps.
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
    """The mean law (E, A, B, alpha, beta), shape (1, 5), and its mean objective and noise."""

    params: FloatArray
    objective: float
    noise: float


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


def tokens_per_param_weight(tokens_per_param: FloatArray, factor: float = 10.0) -> FloatArray:
    """Return how well the law describes trainings of this D/N: 1 at 20, a half `factor` away."""
    off = np.log(tokens_per_param / TOKENS_PER_PARAM) / np.log(factor)
    return np.asarray(1.0 / (1.0 + off * off))


def point_weights(
    num_params: FloatArray, num_tokens: FloatArray, train_flops: FloatArray
) -> FloatArray:
    """Return how much each point counts under each weighting, shape (16, n).

    In effective trainings: their sum is at most the temper times n, and less where all are short.
    """
    rows = []
    for temper, power, factor, short in product(
        TEMPER, COMPUTE_POWER, TOKENS_PER_PARAM_FACTOR, SHORT_TOKENS
    ):
        weights = (train_flops / train_flops.max()) ** power
        weights = weights * tokens_per_param_weight(num_tokens / num_params, factor)
        trust = 1.0 / (1.0 + (short / num_tokens) ** 2)
        rows.append(temper * trust * weights / weights.mean())
    return np.array(rows)


def fit_anchored(
    num_params: FloatArray,
    num_tokens: FloatArray,
    loss: FloatArray,
    train_flops: FloatArray,
    *,
    num_draws: int = 0,
    seed: int = 0,
    prior: AnchorPrior = PRIOR,
) -> tuple[AnchoredFit, FloatArray | None]:
    """Return the mean law over the weightings, and draws of the parameters, shape (draws, 5).

    A draw takes one of the weightings, refits the points with exponential weights (the Bayesian
    bootstrap, Rubin 1981) and a prior mean that is moved by its own deviation ("randomise, then
    optimise", Bardsley et al. 2014), so the draws hold what the data, the prior and the choice of
    weights leave open.

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
    middle = np.broadcast_to(weights.mean(axis=0), (len(starts), loss.size))
    state, _ = _maximize(posterior, starts, middle)
    best = state.theta[[int(state.objective.argmin())]]
    state, noise = _maximize(posterior, np.repeat(best, len(weights), axis=0), weights)
    mean = _mean_law(posterior, state.theta)
    center = AnchoredFit(_natural(mean), state.objective.mean(), float(np.median(noise)))
    if not num_draws:
        return center, None
    generator = np.random.default_rng(seed)
    chosen = np.arange(num_draws) % len(weights)
    rows = max(1, BATCH_ELEMENTS // loss.size)
    parts = []
    for first in range(0, num_draws, rows):
        which = chosen[first : first + rows]
        drawn = generator.exponential(size=(which.size, loss.size)) * weights[which]
        shift = generator.standard_normal((which.size, 5))
        moved, _ = _maximize(posterior, state.theta[which], drawn, noise=noise[which], shift=shift)
        parts.append(mean + DRAW_SCALE * (moved.theta - mean))
    return center, _natural(np.concatenate(parts))


def _mean_law(posterior: _Posterior, theta: FloatArray) -> FloatArray:
    """Return the one law, shape (1, 5), closest to the geometric mean of the laws' predictions.

    By Gauss-Newton on a grid of sizes and token counts in and beyond the table.
    """
    reach = np.log(SURFACE_REACH)
    sides = [
        np.linspace(axis.min(), axis.max() + reach, SURFACE_SIDE)
        for axis in (posterior.x, posterior.y)
    ]
    x, y = (axis.ravel() for axis in np.meshgrid(*sides))
    target = _log_loss(theta, x, y)[0].mean(axis=0)
    mean = theta.mean(axis=0, keepdims=True)
    for _ in range(SURFACE_ITERATIONS):
        log_loss, jacobian = _log_loss(mean, x, y)
        slopes = jacobian[0]
        step = np.linalg.solve(
            slopes @ slopes.T + 1e-8 * np.eye(5), slopes @ (target - log_loss[0])
        )
        mean = mean + np.clip(step, -LARGEST_STEP, LARGEST_STEP)
    return np.asarray(mean)


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
