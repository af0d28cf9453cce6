"""Synthetic sweeps with known laws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from planner.curves import Points, curve_forms

TRUTH = (1.8, 480.0, 2100.0, 0.35, 0.37)
"""E, A, B, alpha, beta of the law behind most sweeps here."""


def _sweep(
    *,
    form: str = "chinchilla",
    truth: tuple[float, ...] = TRUTH,
    sizes: int = 6,
    tokens: int = 6,
    noise: float = 0.002,
    outliers: float = 0.0,
    seed: int = 0,
    copies: int = 1,
    **columns: np.ndarray,
) -> Points:
    n, d = np.meshgrid(np.geomspace(3e7, 3e9, sizes), np.geomspace(1e9, 1e11, tokens))
    given = {"num_params": np.tile(n.ravel(), copies), "num_tokens": np.tile(d.ravel(), copies)}
    given.update(columns)
    generator = np.random.default_rng(seed)
    loss = curve_forms()[form].predict(np.array([truth]), given)[0]
    loss = loss * np.exp(noise * generator.standard_normal(loss.size))
    loss[generator.random(loss.size) < outliers] *= 1.05
    return Points(loss=loss, **given)


@pytest.fixture(scope="session")
def sweep() -> Callable[..., Points]:
    """Return a function that makes the points of a grid of sizes and token counts."""
    return _sweep


@pytest.fixture(scope="session")
def isoflop_sweep() -> Callable[..., Points]:
    """Return a function that makes IsoFLOP points: sizes around the best of each budget."""

    def make(
        budgets: tuple[float, ...] = (1e18, 3e18, 1e19, 3e19, 1e20),
        num_sizes: int = 7,
        noise: float = 0.002,
        seed: int = 0,
        off_center: float = 1.0,
    ) -> Points:
        e, a, b, alpha, beta = TRUTH
        g = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
        flops = np.repeat(budgets, num_sizes)
        best = g * (flops / 6) ** (beta / (alpha + beta))
        n = best * off_center * np.tile(np.geomspace(1 / 5, 5, num_sizes), len(budgets))
        d = flops / (6 * n)
        loss = e + a / n**alpha + b / d**beta
        loss *= np.exp(noise * np.random.default_rng(seed).standard_normal(loss.size))
        return Points(num_params=n, num_tokens=d, loss=loss, train_flops=flops)

    return make
