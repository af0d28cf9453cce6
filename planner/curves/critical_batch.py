"""Critical batch: how many tokens per step still save steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.curves.arrays import FloatArray
from planner.curves.checks import positive_lists
from planner.curves.intervals import DEFAULT_DRAWS, fit_curve
from planner.curves.law import Coefficient
from planner.curves.problem import CurveProblem
from planner.errors import FitError

__all__ = ["CriticalBatch", "PowerLaw", "fit_critical_batch", "fit_power_law"]

NEGLIGIBLE = 1e-3
"""A share of the least steps (or examples) below which a term cannot be told from none."""

OVERHEAD = 0.2
"""Steps beyond ideal linear scaling at which a batch counts as critical (Zhang et al. 2024)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalBatch:
    """steps = min_steps + min_examples / batch, in whatever unit the batch has."""

    min_steps: float
    min_examples: float
    num_points: int
    noise: float
    """Standard deviation of log steps around the curve."""
    coefficients: tuple[Coefficient, ...] = ()
    """min_steps, min_examples and the balanced batch, with intervals."""

    @property
    def balanced_batch(self) -> float:
        """Batch of twice the least steps and twice the least examples (McCandlish et al. 2018)."""
        return self.min_examples / self.min_steps

    def critical_batch(self, base_batch: float, overhead: float = OVERHEAD) -> float:
        """Return the batch whose steps exceed linear scaling from `base_batch` by the overhead.

        a + b/B = (1 + h) (a + b/B0) B0/B  gives  B = (1 + h) B0 + h b/a.

        Source: Zhang et al. 2024 (arXiv:2410.21676), section 3.

        >>> CriticalBatch(min_steps=100.0, min_examples=2e5, num_points=9, noise=0.0).critical_batch(256)
        707.2
        """
        return float((1 + overhead) * base_batch + overhead * self.min_examples / self.min_steps)


def fit_critical_batch(
    batch: ArrayLike,
    steps_to_target: ArrayLike,
    *,
    num_bootstraps: int = DEFAULT_DRAWS,
    level: float = 0.9,
    seed: int = 0,
) -> CriticalBatch:
    """Fit steps = a + b/B by least squares in log steps.

    Source: McCandlish et al. 2018 (arXiv:1812.06162), equation 2.11, solved for steps.

    Raises:
        ConfigError: Lengths differ, a value is not positive and finite, or the level is not in (0, 1).
        FitError: Fewer than four batches, or steps do not fall with the batch.
    """
    b, s = positive_lists(batch=batch, steps_to_target=steps_to_target)
    if np.unique(b).size < 4:
        raise FitError(f"a critical batch needs at least 4 batches: got {np.unique(b).size}.")
    if s[b.argmax()] >= s[b.argmin()]:
        raise FitError("steps to the target must fall with the batch: they do not.")
    center = float(np.exp(np.log(b).mean()))

    def natural(theta: FloatArray) -> FloatArray:
        steps, examples = np.exp(theta[:, 0]), np.exp(theta[:, 1]) * center
        return np.stack([steps, examples, examples / steps], axis=1)

    level_of_steps = float(np.log(s).mean())
    problem = CurveProblem(
        names=("min_steps", "min_examples", "balanced_batch"),
        model=lambda theta: np.logaddexp(theta[:, :1], theta[:, 1:] - np.log(b / center)),
        target=np.log(s),
        natural=natural,
        delta=np.inf,
        ranges={
            "min_steps": (NEGLIGIBLE * float(s.min()), np.inf),
            "min_examples": (NEGLIGIBLE * float((s * b).min()), np.inf),
        },
    )
    fitted = fit_curve(
        problem,
        np.array([[level_of_steps - x, level_of_steps - y] for x in (0.3, 1, 3) for y in (0.3, 1)]),
        num_bootstraps=num_bootstraps,
        level=level,
        seed=seed,
    )
    return CriticalBatch(
        min_steps=fitted.coefficients[0].value,
        min_examples=fitted.coefficients[1].value,
        num_points=int(s.size),
        noise=float(np.sqrt(2 * fitted.objective_value / max(s.size - 2, 1))),
        coefficients=fitted.coefficients,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """y = scale (x / center)^exponent."""

    scale: float
    center: float
    exponent: float
    coefficients: tuple[Coefficient, ...] = ()
    """scale and exponent, with intervals."""

    def predict(self, x: ArrayLike) -> FloatArray:
        """Return y at x."""
        return np.asarray(
            self.scale * (np.asarray(x, dtype=np.float64) / self.center) ** self.exponent
        )


def fit_power_law(
    x: ArrayLike,
    y: ArrayLike,
    *,
    num_bootstraps: int = DEFAULT_DRAWS,
    level: float = 0.9,
    seed: int = 0,
) -> PowerLaw:
    """Fit a line in logs, e.g. of the critical batch against tokens.

    Raises:
        ConfigError: Lengths differ, a value is not positive and finite, or the level is not in (0, 1).
        FitError: Fewer than three points.
    """
    xs, ys = positive_lists(x=x, y=y)
    if np.unique(xs).size < 3:
        raise FitError(f"a power law needs at least 3 distinct x: got {np.unique(xs).size}.")
    center = float(np.exp(np.log(xs).mean()))
    t = np.log(xs / center)
    problem = CurveProblem(
        names=("scale", "exponent"),
        model=lambda theta: theta[:, :1] + theta[:, 1:] * t,
        target=np.log(ys),
        natural=lambda theta: np.stack([np.exp(theta[:, 0]), theta[:, 1]], axis=1),
        delta=np.inf,
        slopes=lambda theta: np.tile(np.stack([np.ones_like(t), t], axis=1), (len(theta), 1, 1)),
    )
    fitted = fit_curve(
        problem,
        np.array([[float(np.log(ys).mean()), 0.0]]),
        num_bootstraps=num_bootstraps,
        level=level,
        seed=seed,
    )
    scale, exponent = fitted.coefficients
    return PowerLaw(
        scale=scale.value, center=center, exponent=exponent.value, coefficients=fitted.coefficients
    )
