"""Population-based bandits: what a copy changes is chosen by a model of what changes have gained.

A Gaussian process is fitted to how much each member's loss fell between two meetings, given the
settings that it had and the loss that it started from; observations fade with the meetings since.
A copy takes the settings with the highest upper confidence bound, those that other copies of the
same meeting have taken counted as being observed.

Source: Parker-Holder et al. 2020 (arXiv:2002.02518), algorithm 1; the kernel that forgets is that of
Bogunovic et al. 2016 (arXiv:1601.06650), equation 6. Gains are standardised by meeting, which is ours: losses fall most at
first, whatever the settings.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.search_space import Point, SearchSpace
from planner.tuning.encoding import key_of, position_of
from planner.tuning.population import Gain, Population

__all__ = ["BanditPopulation", "forgetting_kernel"]

Array = NDArray[np.float64]

_NUM_CANDIDATES: Final = 512
_MOST_GAINS: Final = 200
"""Newest observations that the process is fitted to."""
_MIN_GAINS: Final = 4
"""Observations before there is a model; until then copies change as in `pbt`."""
_LENGTHS: Final = (0.1, 0.2, 0.4, 0.8)
_FORGETTING: Final = (0.0, 0.1, 0.3)
_NOISES: Final = (0.05, 0.2, 0.5)
"""Grid of hyperparameters, of which the most probable are taken."""
_START_WEIGHT: Final = 0.2
"""A standard deviation of the starting losses counts as much as this share of the space."""
_FIRST: Final = 0.2
_SECOND: Final = 0.4
"""c1 and c2 of the bound: beta_t = c1 log(c2 t), as the authors set them, but at least c1."""


def forgetting_kernel(
    a: Array, times_a: Array, b: Array, times_b: Array, length: float, forgetting: float
) -> Array:
    """Return the covariances [A, B] of points [A, D], [B, D] met at times [A], [B].

    k = exp(-|x - x'|^2 / (2 l^2)) (1 - eps)^(|t - t'| / 2), with l in widths of the space and eps in
    0..1. Source: Bogunovic et al. 2016 (arXiv:1601.06650), equation 6.

    >>> x = np.zeros((1, 1))
    >>> float(forgetting_kernel(x, np.array([0.0]), x, np.array([2.0]), 1.0, 0.5)[0, 0])
    0.5
    """
    squares = ((a[:, None, :] - b[None, :, :]) ** 2).sum(2)
    apart = np.abs(times_a[:, None] - times_b[None, :])
    return np.asarray(np.exp(-0.5 * squares / length**2) * (1.0 - forgetting) ** (apart / 2.0))


class BanditPopulation(Population):
    """A population whose copies take the settings that promise the most."""

    def changed(
        self, space: SearchSpace, base: Mapping[str, Any], point: Point, trial: str, draw: int
    ) -> Point:
        """Return a copied point with its named parameters where the bound is highest.

        A categorical parameter of values that are no numbers lies at their places in the list.
        """
        names = [name for name in self._perturb if name in point]
        fixed = _fixed(point, names)
        gains = [gain for gain in self._gains if _fixed(gain.point, names) == fixed]
        if len(gains) < _MIN_GAINS or not names:
            return super().changed(space, base, point, trial, draw)
        step = self._steps.get(trial, 0)
        seed = random.Random(f"{self._seed} {trial} {step}").getrandbits(63)
        rows = np.random.default_rng(seed).random((_NUM_CANDIDATES, len(names)))
        offered = [
            point | {n: space.parameters[n].from_unit(p) for n, p in zip(names, row, strict=True)}
            for row in rows.tolist()
        ]
        staying = [
            (self._points[member], self._starts[member])
            for member in self._points
            if member not in self._leaving and _fixed(self._points[member], names) == fixed
        ]
        process = _Process(gains[-_MOST_GAINS:], space, names)
        start = min((loss for each, loss in staying if each == point), default=0.0)
        bound = process.bound([(each, start) for each in offered], staying, step + 1)
        chosen = offered[int(np.argsort(-bound, kind="stable")[draw])]
        return space.active(chosen, base)


def _fixed(point: Point, names: Sequence[str]) -> str:
    """Return what a copy does not change: only gains that share it are of one kind."""
    return key_of({name: value for name, value in point.items() if name not in names})


class _Process:
    """A Gaussian process of gains over settings, starting losses and meetings."""

    def __init__(self, gains: Sequence[Gain], space: SearchSpace, names: Sequence[str]) -> None:
        self._space, self._names = space, names
        self._times = np.array([float(gain.step) for gain in gains])
        starts = np.array([gain.start for gain in gains])
        falls = np.array([gain.fall for gain in gains])
        for step in np.unique(self._times):
            met = self._times == step
            falls[met] -= falls[met].mean()
            falls[met] /= float(falls[met].std()) or 1.0
        late = starts[self._times == self._times.max()]
        self._centre, self._spread = float(late.mean()), float(late.std()) or 1.0
        centred = [
            (gain.point, start)
            for gain, start in zip(gains, self._centred(starts).tolist(), strict=True)
        ]
        self._inputs = self._encode(centred)
        self._targets = falls
        self._fit()

    def _centred(self, starts: Array) -> Array:
        """Return starting losses less the mean of their meeting, in spreads of the last one."""
        found = starts.copy()
        for step in np.unique(self._times):
            met = self._times == step
            found[met] -= found[met].mean()
        return np.asarray(found / self._spread)

    def _encode(self, settings: Sequence[tuple[Point, float]]) -> Array:
        """Return settings with their starts as rows [n, D + 1]."""
        return np.array(
            [
                [position_of(self._space.parameters[n], point.get(n)) for n in self._names]
                + [_START_WEIGHT * start]
                for point, start in settings
            ]
        )

    def _fit(self) -> None:
        """Take the hyperparameters of the grid under which the gains are most probable."""
        best = -math.inf
        for length, forgetting, noise in itertools.product(_LENGTHS, _FORGETTING, _NOISES):
            covariance = forgetting_kernel(
                self._inputs, self._times, self._inputs, self._times, length, forgetting
            )
            factor = np.linalg.cholesky(covariance + noise * np.eye(len(covariance)))
            half = np.linalg.solve(factor, self._targets)
            value = -0.5 * float(half @ half) - float(np.log(np.diag(factor)).sum())
            if value > best:
                best, self._length, self._forgetting, self._noise = value, length, forgetting, noise

    def bound(
        self, offered: Sequence[tuple[Point, float]], pending: Sequence[tuple[Point, float]],
        step: int,
    ) -> Array:  # fmt: skip
        """Return the upper confidence bounds [m] of settings, pending ones counted as observed."""
        centre = float(np.mean([start for _, start in pending])) if pending else self._centre
        new = self._encode([(p, (s - centre) / self._spread) for p, s in offered])
        inputs, times, targets = self._inputs, self._times, self._targets
        mean, _ = self._predict(new, step, inputs, times, targets)
        if pending:
            waiting = self._encode([(p, (s - centre) / self._spread) for p, s in pending])
            inputs = np.vstack([inputs, waiting])
            times = np.concatenate([times, np.full(len(waiting), float(step))])
            targets = np.concatenate([targets, np.zeros(len(waiting))])
        _, deviation = self._predict(new, step, inputs, times, targets)
        beta = _FIRST * max(1.0, math.log(_SECOND * step) if step > 1 else 0.0)
        return mean + math.sqrt(beta) * deviation

    def _predict(
        self, new: Array, step: int, inputs: Array, times: Array, targets: Array
    ) -> tuple[Array, Array]:
        now = np.full(len(new), float(step))
        shape = (self._length, self._forgetting)
        covariance = forgetting_kernel(inputs, times, inputs, times, *shape)
        factor = np.linalg.cholesky(covariance + self._noise * np.eye(len(covariance)))
        cross = np.linalg.solve(factor, forgetting_kernel(inputs, times, new, now, *shape))
        mean = cross.T @ np.linalg.solve(factor, targets)
        return mean, np.sqrt(np.maximum(1.0 - (cross**2).sum(0), 1e-9))
