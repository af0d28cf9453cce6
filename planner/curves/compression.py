"""Quality against size after compression, per original size: train large, then compress.

Every original has the loss that it had before; what compression adds grows as its bits per
parameter fall, and less so for larger originals. At a given number of bytes the best original is
read off, with how sure that is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.curves.arrays import FloatArray, IntArray
from planner.curves.checks import positive_lists
from planner.curves.intervals import DEFAULT_DRAWS, fit_curve
from planner.curves.law import Coefficient
from planner.curves.problem import CurveProblem
from planner.errors import FitError

__all__ = ["BestOriginal", "CompressionCurves", "compressed_loss", "fit_compression_curves"]

MIN_POINTS = 2
BITS_PER_BYTE = 8.0
FULL_BITS = 16.0
"""Bits per parameter of an original in bf16."""

DELTA = 1e-3


def compressed_loss(
    original_loss: ArrayLike,
    num_params: ArrayLike,
    compressed_bytes: ArrayLike,
    coefficients: tuple[float, float, float],
) -> FloatArray:
    """Return L = L_N + c N^-gamma_N exp(-P/gamma), P = 8 bytes / N bits per parameter.

    Args:
        original_loss: L_N, nats per token, before compression.
        num_params: N of the original.
        compressed_bytes: Size after compression.
        coefficients: (c, gamma_N, gamma), gamma in bits.

    Source: Kumar et al. 2024 (arXiv:2411.04330), equation 2, at the tokens of each original.

    >>> compressed_loss(3.0, 1e9, [2e9, 0.5e9], (40.0, 0.2, 1.5)).round(4).tolist()
    [3.0, 3.044]
    """
    scale, gamma_n, gamma = coefficients
    n = np.asarray(num_params, dtype=np.float64)
    bits = BITS_PER_BYTE * np.asarray(compressed_bytes, dtype=np.float64) / n
    added = np.exp(np.log(scale) - gamma_n * np.log(n) - bits / gamma)
    return np.asarray(np.asarray(original_loss, dtype=np.float64) + added)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOriginal:
    """The original to compress to a number of bytes."""

    num_params: float
    loss: float
    loss_lower: float | None = None
    """Interval of the curve there; None where nothing was resampled."""
    loss_upper: float | None = None
    share_of_draws: float | None = None
    """Of the resamplings, in which this original is the best."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompressionCurves:
    """Loss against bytes for each original number of parameters."""

    num_params: FloatArray
    """Of the originals, ascending, shape (m,)."""
    original_loss: FloatArray
    """L_N of each, shape (m,)."""
    coefficients: tuple[Coefficient, ...]
    """c, gamma_N and gamma, with intervals."""
    draws: FloatArray
    """Bootstrap draws of (c, gamma_N, gamma, L_N ...), shape (s, 3 + m)."""
    bits_range: FloatArray
    """Fewest and most bits per parameter measured of each, shape (m, 2)."""
    noise: float
    """Robust standard deviation of log loss around the curves."""

    def loss(self, compressed_bytes: ArrayLike) -> FloatArray:
        """Return the loss of every original at these bytes, nan where it was not measured.

        Shape (num originals, number of bytes).
        """
        row = np.concatenate([[c.value for c in self.coefficients], self.original_loss])
        sizes = np.atleast_1d(np.asarray(compressed_bytes, dtype=np.float64))
        return np.asarray(self._losses(row[None], sizes)[0])

    def _losses(self, rows: FloatArray, size_bytes: FloatArray) -> FloatArray:
        """Return losses of draws, shape (s, m, k)."""
        n = self.num_params[:, None]
        bits = BITS_PER_BYTE * size_bytes / n
        inside = (bits >= self.bits_range[:, :1]) & (bits <= self.bits_range[:, 1:])
        losses = [compressed_loss(r[3:, None], n, size_bytes, (r[0], r[1], r[2])) for r in rows]
        return np.asarray(np.where(inside, np.stack(losses), np.nan))

    def best_original(self, compressed_bytes: float) -> BestOriginal:
        """Return the original of least loss at a size in bytes.

        Raises:
            FitError: No original was measured on both sides of that size.
        """
        losses = self.loss(compressed_bytes)[:, 0]
        if np.isnan(losses).all():
            raise FitError(
                f"no original was compressed to sizes around {compressed_bytes:.3g} bytes.",
                hint="Compress one of them further, or less.",
            )
        best = int(np.nanargmin(losses))
        size, loss = float(self.num_params[best]), float(losses[best])
        if not len(self.draws):
            return BestOriginal(num_params=size, loss=loss)
        drawn = self._losses(self.draws, np.array([compressed_bytes]))[:, :, 0]
        tail = 0.5 - 0.5 * self.coefficients[0].level
        low, high = np.quantile(drawn[:, best], [tail, 1 - tail])
        return BestOriginal(
            num_params=size,
            loss=loss,
            loss_lower=float(min(low, loss)),
            loss_upper=float(max(high, loss)),
            share_of_draws=float((np.nanargmin(drawn, axis=1) == best).mean()),
        )


def fit_compression_curves(
    num_params: ArrayLike,
    compressed_bytes: ArrayLike,
    loss: ArrayLike,
    *,
    num_bootstraps: int = DEFAULT_DRAWS,
    level: float = 0.9,
    seed: int = 0,
) -> CompressionCurves:
    """Fit one curve per original to a table of (original size, bytes after compression, loss).

    Source: the protocol of Li et al. 2020 (arXiv:2002.11794), section 4; the curve is that of
    `compressed_loss`, with one L_N per original and the other coefficients shared.

    Args:
        num_params: N of each row's original, shape (n,).
        compressed_bytes: Size after compression, shape (n,).
        loss: After compression, shape (n,).
        num_bootstraps: Resamplings behind the intervals; 0 makes none.
        level: Of the intervals.
        seed: Of the resampling.

    Raises:
        ConfigError: Lengths differ, a value is not positive and finite, or the level is not in (0, 1).
        FitError: An original has no two compressed sizes, or there are too few rows.
    """
    n, b, y = positive_lists(num_params=num_params, compressed_bytes=compressed_bytes, loss=loss)
    sizes, number = np.unique(n, return_inverse=True)
    bits = BITS_PER_BYTE * b / n
    for place, size in enumerate(sizes):
        if np.unique(bits[number == place]).size < MIN_POINTS:
            raise FitError(
                f"the original of {size:.3g} parameters was measured at fewer than {MIN_POINTS} "
                "compressed sizes.",
                hint="Compress it to another size, or leave it out.",
            )
    if y.size < sizes.size + 5:
        raise FitError(
            f"compression curves of {sizes.size} originals have {sizes.size + 3} coefficients and "
            f"need {sizes.size + 5} rows: got {y.size}.",
            hint="Compress each to more sizes.",
        )
    problem, starts = _problem(sizes, number.ravel().astype(np.int64), bits, y)
    fitted = fit_curve(problem, starts, num_bootstraps=num_bootstraps, level=level, seed=seed)
    return CompressionCurves(
        num_params=sizes,
        original_loss=np.array([c.value for c in fitted.coefficients[3:]]),
        coefficients=fitted.coefficients[:3],
        draws=problem.natural(fitted.draws),
        bits_range=np.array(
            [[bits[number == i].min(), bits[number == i].max()] for i in range(sizes.size)]
        ),
        noise=fitted.noise,
    )


def _problem(
    sizes: FloatArray, number: IntArray, bits: FloatArray, loss: FloatArray
) -> tuple[CurveProblem, FloatArray]:
    """Return the problem in theta = (log added at the middle, gamma_N, log gamma, log L_N ...)."""
    away = np.log(sizes[number])
    center, middle = float(away.mean()), float(bits.min())

    def model(theta: FloatArray) -> FloatArray:
        added = theta[:, :1] - theta[:, 1:2] * (away - center)
        added = added - (bits - middle) / np.exp(theta[:, 2:3])
        return np.asarray(np.logaddexp(theta[:, 3:][:, number], added))

    def natural(theta: FloatArray) -> FloatArray:
        gamma = np.exp(theta[:, 2])
        scale = np.exp(theta[:, 0] + theta[:, 1] * center + middle / gamma)
        return np.column_stack([scale, theta[:, 1], gamma, np.exp(theta[:, 3:])])

    least = np.array([loss[number == i].min() for i in range(sizes.size)])
    rise = max(float((loss / least[number]).max()) - 1, 1e-3) * float(least.mean())
    starts = [[np.log(rise), 0.2, np.log(g), *np.log(0.99 * least)] for g in (0.5, 1.0, 2.0, 4.0)]
    problem = CurveProblem(
        names=("c", "gamma_N", "gamma", *(f"loss_{size:.3g}" for size in sizes)),
        model=model,
        target=np.log(loss),
        natural=natural,
        delta=DELTA,
        ranges={"gamma": (0.05, FULL_BITS)},
    )
    return problem, np.array(starts)
