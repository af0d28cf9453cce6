"""A Gaussian process over points of the unit cube, with a noise of its own for every observation.

Kernel: Matern 5/2 with a length per column, fitted by maximum a posteriori. Source: Rasmussen and
Williams 2006, "Gaussian Processes for Machine Learning", algorithm 2.1 and section 5.4.1; the prior
that grows lengths with the root of the number of columns follows Hvarfner et al. 2024
(arXiv:2402.02229).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["GaussianProcess", "Hyperparameters", "expected_improvement", "normal_cdf"]

Array = NDArray[np.float64]

_JITTER: Final = 1e-8
_NUM_STEPS: Final = 25
"""Steps of resilient propagation per fit."""


_erf = np.vectorize(math.erf, otypes=[float])


def normal_cdf(z: Array) -> Array:
    """Return the standard normal distribution function."""
    return 0.5 * (1.0 + np.asarray(_erf(z / math.sqrt(2.0)), dtype=float))


def expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Return E[max(best - y, 0)] of y ~ N(mean, deviation^2).

    Source: Jones, Schonlau and Welch 1998, equation 15.

    >>> float(expected_improvement(np.array([0.0]), np.array([1.0]), 0.0)[0].round(4))
    0.3989
    """
    z = (best - mean) / deviation
    density = np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
    return np.asarray(deviation * (z * normal_cdf(z) + density), dtype=float)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    """Logarithms of what the kernel is made of, with the prior that holds them together."""

    log_lengths: Array
    """Per column, in widths of the cube."""
    log_variance: float = 0.0
    """Of the function."""
    log_noise: float = -4.0
    """Variance that all observations share, beyond what each says of itself."""
    log_trust: float = 0.0
    """Factor on the variances that observations say of themselves."""

    @classmethod
    def prior(cls, num_columns: int) -> Hyperparameters:
        """Return the prior's mean."""
        length = np.log(0.5 * np.sqrt(max(num_columns, 1)))
        return cls(log_lengths=np.full(num_columns, length))

    def vector(self) -> Array:
        """Return them as one vector [num_columns + 3]."""
        tail = [self.log_variance, self.log_noise, self.log_trust]
        return np.concatenate([self.log_lengths, tail])

    @classmethod
    def from_vector(cls, vector: Array) -> Hyperparameters:
        """Return the hyperparameters that `vector` holds."""
        variance, noise, trust = vector[-3:].tolist()
        return cls(log_lengths=vector[:-3], log_variance=variance, log_noise=noise, log_trust=trust)


def _prior_widths(num_columns: int) -> Array:
    return np.array([1.0] * num_columns + [0.7, 1.5, 0.7])


def _matern(scaled_a: Array, scaled_b: Array) -> tuple[Array, Array]:
    """Return the correlations [A, B], and (5 / 3) (1 + s) exp(-s) with s the root of 5 r^2."""
    squares = (scaled_a**2).sum(1)[:, None] + (scaled_b**2).sum(1)[None, :]
    squares = np.maximum(squares - 2.0 * scaled_a @ scaled_b.T, 0.0)
    root = np.sqrt(5.0 * squares)
    decay = np.exp(-root)
    slope = (5.0 / 3.0) * (1.0 + root) * decay
    return (1.0 + root + (5.0 / 3.0) * squares) * decay, slope


class GaussianProcess:
    """A posterior over functions with mean zero.

    Args:
        inputs: Points [n, D] in the unit cube.
        targets: Observations [n], roughly of mean 0 and variance 1.
        variances: What each observation says of its own variance [n].
        hyperparameters: From `fit`.
    """

    def __init__(
        self, inputs: Array, targets: Array, variances: Array, hyperparameters: Hyperparameters
    ) -> None:
        self._scale = np.exp(-hyperparameters.log_lengths)
        self._variance = float(np.exp(hyperparameters.log_variance))
        self._shared_noise = float(np.exp(hyperparameters.log_noise))
        noise = self._shared_noise + np.exp(hyperparameters.log_trust) * variances
        self._scaled = inputs * self._scale
        covariance = self._variance * _matern(self._scaled, self._scaled)[0]
        covariance[np.diag_indices_from(covariance)] += noise + _JITTER
        factor = np.linalg.cholesky(covariance)
        self._inverse = np.linalg.inv(factor)
        self._weights = self._inverse.T @ (self._inverse @ targets)

    def mean(self, points: Array) -> Array:
        """Return the posterior mean [m] at points [m, D]."""
        return self._variance * _matern(points * self._scale, self._scaled)[0] @ self._weights

    def predict(self, points: Array, pending: Array | None = None) -> tuple[Array, Array]:
        """Return the posterior mean and standard deviation [m] at points [m, D].

        Args:
            points: Where.
            pending: Points [p, D] that are being observed: the mean stays as it is, the deviation
                is what it will be once their values are known.
        """
        cross = self._variance * _matern(points * self._scale, self._scaled)[0]
        half = cross @ self._inverse.T
        explained = (half**2).sum(1)
        if pending is not None and len(pending):
            explained += self._explained_by(points, half, pending)
        deviation = np.sqrt(np.maximum(self._variance - explained, 1e-6 * self._variance))
        return cross @ self._weights, deviation

    def _explained_by(self, points: Array, half: Array, pending: Array) -> Array:
        """Return the further variance that observing pending points would explain [m]."""
        scaled = pending * self._scale
        between = self._variance * _matern(scaled, self._scaled)[0] @ self._inverse.T
        own = self._variance * _matern(scaled, scaled)[0] - between @ between.T
        own[np.diag_indices_from(own)] += self._shared_noise + _JITTER
        left = self._variance * _matern(points * self._scale, scaled)[0] - half @ between.T
        solved = np.linalg.solve(own, left.T)
        return np.einsum("mp,pm->m", left, solved)

    @staticmethod
    def fit(
        inputs: Array, targets: Array, variances: Array, start: Hyperparameters
    ) -> Hyperparameters:
        """Return the hyperparameters that observations make most probable, starting from some.

        Resilient propagation (Riedmiller and Braun 1993) on the log posterior.
        """
        prior = Hyperparameters.prior(inputs.shape[1]).vector()
        widths = _prior_widths(inputs.shape[1])
        squares = (inputs[:, None, :] - inputs[None, :, :]) ** 2
        vector = start.vector()
        best, best_value = vector, -np.inf
        steps, previous = np.full(len(vector), 0.2), np.zeros(len(vector))
        for _ in range(_NUM_STEPS):
            value, gradient = _log_posterior(vector, squares, targets, variances)
            value -= 0.5 * float((((vector - prior) / widths) ** 2).sum())
            gradient = gradient - (vector - prior) / widths**2
            if value > best_value:
                best, best_value = vector, value
            agree = gradient * previous
            steps = np.clip(steps * np.where(agree > 0, 1.3, np.where(agree < 0, 0.5, 1)), 1e-3, 1)
            vector = np.clip(vector + np.sign(gradient) * steps, prior - 4, prior + 4)
            previous = gradient
        return Hyperparameters.from_vector(best)


def _log_posterior(
    vector: Array, squares: Array, targets: Array, variances: Array
) -> tuple[float, Array]:
    """Return the log marginal likelihood and its gradient; squares [n, n, D] of differences."""
    parameters = Hyperparameters.from_vector(vector)
    num_columns = squares.shape[2]
    weights = np.exp(-2.0 * parameters.log_lengths)
    distance = squares @ weights
    root = np.sqrt(5.0 * distance)
    decay = np.exp(-root)
    variance = np.exp(parameters.log_variance)
    signal = variance * (1.0 + root + (5.0 / 3.0) * distance) * decay
    shared, own = np.exp(parameters.log_noise), np.exp(parameters.log_trust) * variances
    covariance = signal.copy()
    covariance[np.diag_indices_from(covariance)] += shared + own + _JITTER
    factor = np.linalg.cholesky(covariance)
    inverse_factor = np.linalg.inv(factor)
    inverse = inverse_factor.T @ inverse_factor
    alpha = inverse @ targets
    value = -0.5 * float(targets @ alpha) - float(np.log(np.diag(factor)).sum())
    pull = np.outer(alpha, alpha) - inverse
    slope = pull * (variance * (5.0 / 3.0) * (1.0 + root) * decay)
    gradient = np.empty(num_columns + 3)
    gradient[:num_columns] = 0.5 * np.einsum("ij,ijd->d", slope, squares) * weights
    gradient[num_columns] = 0.5 * float((pull * signal).sum())
    diagonal = np.diag(pull)
    gradient[num_columns + 1] = 0.5 * float(shared * diagonal.sum())
    gradient[num_columns + 2] = 0.5 * float((own * diagonal).sum())
    return value, gradient
