"""The envelope of training curves: at each amount of compute, the size that has got furthest.

It needs losses along each run, at a constant learning rate (`stable`), and no law. It reads them
differently from the surface and the IsoFLOP profiles, which see final losses alone, so the three
are compared (`methods`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from planner.curves.arrays import BoolArray, FloatArray, IntArray
from planner.curves.checks import positive_lists
from planner.curves.isoflop import SizeFrontier, fit_size_line, group_values
from planner.errors import ConfigError, FitError

__all__ = ["Envelope", "fit_envelope"]

NUM_LEVELS = 60
MIN_SIZES = 3
LEAST_WIDTH = 1e-12
"""Of a step between levels, where all runs are at one compute."""

SIZE_TOLERANCE = 0.02
"""Sizes that differ by less than this fraction are one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Envelope:
    """The lower envelope at levels of compute, shape (k,), and the power law of its sizes."""

    train_flops: FloatArray
    loss: FloatArray
    num_params: FloatArray
    """Best size at each level: between those trained, or the one at the edge that is lowest."""
    is_inside: BoolArray
    """Whether a smaller and a larger size lie above it; the others say nothing of the best size."""
    frontier: SizeFrontier
    num_runs: int


def fit_envelope(
    train_flops: ArrayLike, loss: ArrayLike, num_params: ArrayLike, run: ArrayLike
) -> Envelope:
    """Return the envelope of runs, rows of (compute so far, loss, size, run).

    Each run is averaged within a level's width and interpolated in log-log between its own points,
    never beyond them; a size takes the lowest of its runs. Where the lowest size lies between two
    others the best one is the vertex of the parabola in log N through the three. The power law goes
    through one place per size that is lowest somewhere: the means of log compute and of log vertex
    over its stretch. The losses of a run may err together, so a stretch counts as one observation with
    the scatter of a level.

    Source: Hoffmann et al. 2022 (arXiv:2203.15556), approach 1; there the sizes themselves are
    used, at 1,500 levels.

    Raises:
        ConfigError: Lengths differ, there is no row, or a value is not positive and finite.
        FitError: Fewer than three sizes are lowest anywhere between a smaller and a larger one.
    """
    c, y, n = positive_lists(train_flops=train_flops, loss=loss, num_params=num_params)
    names, runs = np.unique(np.asarray(run).ravel(), return_inverse=True)
    if not c.size or runs.shape != c.shape:
        raise ConfigError(
            f"an envelope needs losses, and the run of each: got {c.size} and {runs.size}."
        )
    levels = np.linspace(np.log(c.min()), np.log(c.max()), NUM_LEVELS)
    groups = group_values(n, SIZE_TOLERANCE)
    log_size = np.bincount(groups, np.log(n)) / np.bincount(groups)
    curves = _size_curves(np.log(c), np.log(y), runs, groups, levels)
    is_reached = np.isfinite(curves).any(axis=0)
    best, vertex, is_inside = _best_sizes(log_size, curves[:, is_reached])
    middles = [
        (levels[is_reached][here].mean(), vertex[here].mean())
        for size in np.unique(best[is_inside])
        if (here := is_inside & (best == size)).any()
    ]
    if len(middles) < MIN_SIZES:
        raise _too_few(len(middles), is_inside, curves[:, is_reached])
    line = fit_size_line(*np.array(middles).T)
    away = levels[is_reached][is_inside] - line.center
    scatter = float(np.std(vertex[is_inside] - line.intercept - line.slope * away))
    return Envelope(
        train_flops=np.exp(levels[is_reached]),
        loss=np.exp(curves.min(axis=0)[is_reached]),
        num_params=np.exp(vertex),
        is_inside=is_inside,
        frontier=replace(line, noise=max(line.noise, scatter)),
        num_runs=len(names),
    )


def _size_curves(
    log_c: FloatArray, log_y: FloatArray, runs: IntArray, groups: IntArray, levels: FloatArray
) -> FloatArray:
    """Return the lowest log loss of each size at each level, infinite where no run of it is.

    Reports of one run between two levels are averaged first: where a curve has many, the lowest of
    several would otherwise be that of the largest noise.
    """
    width = max(float(levels[1] - levels[0]), LEAST_WIDTH)
    place = np.floor((log_c - levels[0]) / width).astype(np.int64)
    names, which = np.unique(runs * (levels.size + 1) + place, return_inverse=True)
    num = np.bincount(which)
    x, y = np.bincount(which, log_c) / num, np.bincount(which, log_y) / num
    size_of_run = np.empty(int(runs.max()) + 1, dtype=np.int64)
    size_of_run[runs] = groups
    owner = names // (levels.size + 1)
    ends = [0, *(np.flatnonzero(np.diff(owner)) + 1), owner.size]
    curves = np.full((int(groups.max()) + 1, levels.size), np.inf)
    for start, end in pairwise(ends):
        mine = np.interp(levels, x[start:end], y[start:end], left=np.inf, right=np.inf)
        curve = curves[size_of_run[owner[start]]]
        np.minimum(curve, mine, out=curve)
    return curves


def _best_sizes(log_size: FloatArray, curves: FloatArray) -> tuple[IntArray, FloatArray, BoolArray]:
    """Return at each level the lowest size, its refined log, and whether it lies between others."""
    best = curves.argmin(axis=0)
    vertex = log_size[best].copy()
    is_inside = np.zeros(best.size, dtype=bool)
    for level, middle in enumerate(best):
        there = np.flatnonzero(np.isfinite(curves[:, level]))
        place = int(np.searchsorted(there, middle))
        if not 0 < place < there.size - 1:
            continue
        around = there[place - 1 : place + 2]
        (x0, x1, x2), (y0, y1, y2) = log_size[around], curves[around, level]
        left, right = (y0 - y1) / (x1 - x0), (y2 - y1) / (x2 - x1)
        if left + right > 0:
            share = left / (left + right)
            vertex[level] = 0.5 * ((x0 + x1) * (1 - share) + (x1 + x2) * share)
            is_inside[level] = True
    return best, vertex, is_inside


def _too_few(num_sizes: int, is_inside: BoolArray, curves: FloatArray) -> FitError:
    at_level = np.isfinite(curves).sum(axis=0)
    few, edge = int((at_level < MIN_SIZES).sum()), int((~is_inside & (at_level >= MIN_SIZES)).sum())
    return FitError(
        f"an envelope needs at least {MIN_SIZES} sizes that are lowest between a smaller and a "
        f"larger one: got {num_sizes} (of {is_inside.size} levels of compute {few} are reached by "
        f"fewer than {MIN_SIZES} sizes, at {edge} the lowest is the smallest or the largest).",
        hint="Train more sizes, or each for longer, so that their curves cross.",
    )
