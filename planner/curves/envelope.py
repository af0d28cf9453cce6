"""The envelope of training curves: at each amount of compute, the run that has got furthest.

It needs losses along each run and no law; the sizes on the envelope give a power law of the best
size. Losses before the schedule has ended lie above final ones, so it is biased unless every run
keeps a constant rate: the surface and the IsoFLOP profiles come first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.curves.arrays import FloatArray
from planner.curves.critical_batch import PowerLaw, fit_power_law
from planner.curves.intervals import DEFAULT_DRAWS
from planner.errors import ConfigError, FitError

__all__ = ["Envelope", "fit_envelope"]

NUM_LEVELS = 60
MIN_SIZES = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Envelope:
    """The lower envelope at levels of compute, shape (k,), and the power law of its sizes."""

    train_flops: FloatArray
    loss: FloatArray
    num_params: FloatArray
    """Size of the run that is lowest at each level."""
    size_law: PowerLaw
    num_runs: int
    num_sizes_on_envelope: int


def fit_envelope(
    train_flops: ArrayLike,
    loss: ArrayLike,
    num_params: ArrayLike,
    run: ArrayLike,
    *,
    num_bootstraps: int = DEFAULT_DRAWS,
    level: float = 0.9,
    seed: int = 0,
) -> Envelope:
    """Return the envelope of runs, rows of (compute so far, loss, size, run).

    Each run is interpolated in log-log between its own points, never beyond them. The power law
    uses, per size, the middle of the stretch on which it is lowest; the stretch of the smallest
    and of the largest size is cut off by the table and is left out when three others remain.

    Source: Hoffmann et al. 2022 (arXiv:2203.15556), approach 1.

    Raises:
        ConfigError: A value is not positive and finite.
        FitError: Fewer than three sizes touch the envelope.
    """
    c, y, n = (np.asarray(v, dtype=np.float64).ravel() for v in (train_flops, loss, num_params))
    runs = np.unique(np.asarray(run).astype(str), return_inverse=True)[1].ravel()
    if not (c.shape == y.shape == n.shape == runs.shape):
        raise ConfigError("train_flops, loss, num_params and run must have one length.")
    if not all((np.isfinite(v) & (v > 0)).all() for v in (c, y, n)):
        raise ConfigError("train_flops, loss and num_params must be positive and finite.")
    levels = np.linspace(np.log(c.min()), np.log(c.max()), NUM_LEVELS)
    curves = np.full((int(runs.max()) + 1, NUM_LEVELS), np.inf)
    sizes = np.empty(len(curves))
    for number in range(len(curves)):
        mine = np.flatnonzero(runs == number)
        order = mine[np.argsort(c[mine])]
        curves[number] = np.interp(
            levels, np.log(c[order]), np.log(y[order]), left=np.inf, right=np.inf
        )
        sizes[number] = n[order[0]]
    lowest = curves.argmin(axis=0)
    reached = np.isfinite(curves.min(axis=0))
    winners = sizes[lowest][reached]
    touching = np.unique(winners)
    if touching.size < MIN_SIZES:
        raise FitError(
            f"an envelope needs at least {MIN_SIZES} sizes on it: got {touching.size}.",
            hint="Train more sizes, or each for longer, so that their curves cross.",
        )
    inner = touching[1:-1] if touching.size >= MIN_SIZES + 2 else touching
    middles = np.exp([levels[reached][winners == size].mean() for size in inner])
    return Envelope(
        train_flops=np.exp(levels[reached]),
        loss=np.exp(curves.min(axis=0)[reached]),
        num_params=winners,
        size_law=fit_power_law(
            middles, inner, num_bootstraps=num_bootstraps, level=level, seed=seed
        ),
        num_runs=len(curves),
        num_sizes_on_envelope=int(touching.size),
    )
