"""Quality against size after compression, per original size: train large, then compress.

For each original model the loss is interpolated between measured compressed sizes (monotone in
log bytes, never beyond them); at a given number of bytes the best original is read off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator

from planner.curves.arrays import FloatArray
from planner.errors import ConfigError, FitError

__all__ = ["CompressionCurves", "fit_compression_curves"]

MIN_POINTS = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompressionCurves:
    """Loss against bytes for each original number of parameters."""

    num_params: tuple[float, ...]
    curves: tuple[PchipInterpolator, ...]
    """log loss of log bytes, one per original size."""

    def loss(self, compressed_bytes: ArrayLike) -> FloatArray:
        """Return the loss of every original at these bytes, nan where it was not measured.

        Shape (num originals, number of bytes).
        """
        log_bytes = np.log(np.atleast_1d(np.asarray(compressed_bytes, dtype=np.float64)))
        return np.exp([curve(log_bytes, extrapolate=False) for curve in self.curves])

    def best_original(self, compressed_bytes: float) -> tuple[float, float]:
        """Return (parameters of the best original, its loss) at a size in bytes.

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
        return self.num_params[best], float(losses[best])


def fit_compression_curves(
    num_params: ArrayLike, compressed_bytes: ArrayLike, loss: ArrayLike
) -> CompressionCurves:
    """Return the curves of a table of (original size, bytes after compression, loss).

    Of several ways to reach the same bytes the one of least loss counts.

    Source: the protocol of Li et al. 2020 (arXiv:2002.11794), section 4.

    Raises:
        ConfigError: A value is not positive and finite.
        FitError: No original has two compressed sizes.
    """
    n, b, y = (
        np.asarray(v, dtype=np.float64).ravel() for v in (num_params, compressed_bytes, loss)
    )
    if not (n.shape == b.shape == y.shape) or not all(
        (np.isfinite(v) & (v > 0)).all() for v in (n, b, y)
    ):
        raise ConfigError(
            "num_params, compressed_bytes and loss must be positive lists of one length."
        )
    sizes, curves = [], []
    for size in np.unique(n):
        mine = n == size
        steps = np.unique(b[mine])
        if steps.size < MIN_POINTS:
            continue
        least = [y[mine & (b == step)].min() for step in steps]
        sizes.append(float(size))
        curves.append(PchipInterpolator(np.log(steps), np.log(least)))
    if not curves:
        raise FitError("no original model was measured at two compressed sizes.")
    return CompressionCurves(num_params=tuple(sizes), curves=tuple(curves))
