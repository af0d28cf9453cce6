"""Simulated tables with known coefficients, one case per form, with noise and 5 % outliers.

Each case is a truth and a function seed -> coefficients with intervals, fitted to a fresh table.
`benchmarks/recovery.py` counts how often the intervals hold the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planner.curves import (
    Coefficient,
    LossTrace,
    Points,
    TuningGrid,
    curve_forms,
    fit,
    fit_compression_curves,
    fit_critical_batch,
    fit_downstream_link,
    fit_envelope,
    fit_learning_curve,
    fit_power_law,
    fit_repeated,
    fit_schedule_law,
    fit_tuning_law,
)
from planner.curves.compression import compressed_loss
from planner.curves.repeated import MUENNIGHOFF_C4

OUTLIER_SHARE = 0.05
BASE = (1.8, 480.0, 2100.0, 0.35, 0.37)
SURFACE_TRUTHS: Mapping[str, tuple[float, ...]] = {
    "chinchilla": BASE,
    "anchored": BASE,
    "tied": (1.8, 480.0, 600.0, 0.35, 0.35),
    "coupled": (1.7, 900.0, 4000.0, 0.45, 0.5, 0.8),
    "pinned": (1.6, 480.0, 2100.0, 0.35, 0.37),
    "kaplan": (0.0, 8.8e13**0.8, 5.4e13, 0.8, 1.0, 0.095),
    "overtraining": (1.8, 700.0, 700.0, 0.17),
    "compute": (1.8, 900.0, 0.15),
    "sparsity": (1.5, 480.0, 2100.0, 0.35, 0.37, 0.05, 0.3, 9.0, 0.5, 0.25),
    "precision": (*BASE, 2.5, 2.0),
    "post-training-precision": (*BASE, 0.3, 0.5, 0.5, 1.5),
    "repeated": (*BASE, 12.0, 6.0),
}
"""Coefficients of the order of the published ones, in the order of the form."""

FIXED = {"pinned": ("E",), "kaplan": ("E", "beta")}
"""Constants of a form: nothing to recover."""

Recovered = Sequence[Coefficient]


@dataclass(frozen=True, slots=True)
class Case:
    """A truth by coefficient, and the fit of a table that was simulated from it."""

    truth: Mapping[str, float]
    fit: Callable[[int, int], Recovered]
    """(seed, bootstraps) -> coefficients."""

    def inside(self, seed: int, num_bootstraps: int) -> dict[str, bool]:
        """Return which intervals hold the truth for one simulated table."""
        found = {c.name: c for c in self.fit(seed, num_bootstraps)}
        return {
            name: (found[name].lower is None or found[name].lower <= value)
            and (found[name].upper is None or value <= found[name].upper)
            for name, value in self.truth.items()
        }


def noisy(exact: np.ndarray, seed: int, noise: float, outlier: float = 0.05) -> np.ndarray:
    """Return values with log-normal noise, 5 % of them raised by the outlier's share."""
    generator = np.random.default_rng(seed)
    values = exact * np.exp(noise * generator.standard_normal(exact.shape))
    values[generator.random(exact.shape) < OUTLIER_SHARE] *= 1 + outlier
    return values


def sweep(form: str, seed: int, noise: float = 0.002) -> Points:
    """Return a grid of six sizes and six token counts, three times where a form has covariates."""
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(3e7, 3e9, 6), np.geomspace(1e9, 1e11, 6)))
    extra = set(curve_forms()[form].columns) - {"num_params", "num_tokens"}
    copies = 3 if extra else 1
    given = {"num_params": np.tile(n, copies), "num_tokens": np.tile(d, copies)}
    bits = np.repeat([3.0, 5.0, 8.0], 36)
    covariates = {
        "sparsity_fraction": np.repeat([0.0, 0.5, 0.9], 36),
        "weight_bits": bits,
        "activation_bits": np.tile(np.repeat([4.0, 8.0, 16.0], 12), 3),
        "post_training_bits": bits,
        "unique_tokens": np.tile(d, 3) / np.repeat([1.0, 4.0, 40.0], 36),
    }
    given |= {name: covariates[name] for name in extra}
    exact = curve_forms()[form].predict(np.array([SURFACE_TRUTHS[form]]), given)[0]
    return Points(loss=noisy(exact, seed, noise), **given)


def _surface(form: str) -> Case:
    names = curve_forms()[form].coefficients
    truth = dict(zip(names, SURFACE_TRUTHS[form], strict=True))
    for name in FIXED.get(form, ()):
        del truth[name]

    def run(seed: int, num_bootstraps: int) -> Recovered:
        law = fit(sweep(form, seed), form=form, num_bootstraps=num_bootstraps, seed=seed)
        return law.coefficients

    return Case(truth, run)


FLAT = {"E": 0.05, "A": 4.0, "B": 9.0, "alpha": 0.06, "beta": 0.08}


def _flat(seed: int, num_bootstraps: int) -> Recovered:
    """Fit a law that is all but flat, on one decade of sizes and tokens."""
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e8, 1e9, 6), np.geomspace(2e9, 2e10, 6)))
    exact = FLAT["E"] + FLAT["A"] * n ** -FLAT["alpha"] + FLAT["B"] * d ** -FLAT["beta"]
    points = Points(num_params=n, num_tokens=d, loss=noisy(exact, seed, 0.002))
    return fit(points, form="chinchilla", num_bootstraps=num_bootstraps, seed=seed).coefficients


X = np.geomspace(1e4, 1e8, 40)


def saturating(x: np.ndarray) -> np.ndarray:
    """Solve (y - 0.1) / (0.9 - y)^0.7 = 300 x^-0.6 by bisection."""
    low, high = np.full_like(x, 0.1), np.full_like(x, 0.9)
    for _ in range(200):
        middle = 0.5 * (low + high)
        above = (middle - 0.1) / (0.9 - middle) ** 0.7 > 300 * x**-0.6
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return 0.5 * (low + high)


LEARNING_CURVES: Mapping[str, tuple[dict[str, float], np.ndarray]] = {
    "m1": ({"a": 5.0, "b": 0.2}, 5 * X**-0.2),
    "m2": ({"a": 5.0, "b": 0.3, "c": 0.05}, 5 * X**-0.3 + 0.05),
    "m3": (
        {"a": 5.0, "b": 0.3, "c": 0.02, "d": 1e-6},
        5 * (1 / X + 1e-6) ** 0.3 + 0.02,
    ),
    "m4": ({"b": 300.0, "c": 0.6, "e": 0.1, "e0": 0.9, "alpha": 0.7}, saturating(X)),
    "bnsl": (
        {"a": 0.02, "b": 2.0, "c0": 0.1, "c1": 0.3, "d": 1e6, "f": 0.4},
        0.02 + 2 * X**-0.1 * (1 + (X / 1e6) ** (1 / 0.4)) ** (-0.3 * 0.4),
    ),
}


def _learning_curve(form: str) -> Case:
    truth, exact = LEARNING_CURVES[form]

    def run(seed: int, num_bootstraps: int) -> Recovered:
        y = noisy(exact, seed, 0.003)
        return fit_learning_curve(X, y, form=form, num_bootstraps=num_bootstraps, seed=seed).coefficients  # fmt: skip

    return Case(truth, run)


def _critical_batch(seed: int, num_bootstraps: int) -> Recovered:
    batch = 2.0 ** np.arange(6, 15.1, 0.5)
    steps = noisy(1000 + 4e6 / batch, seed, 0.01)
    return fit_critical_batch(batch, steps, num_bootstraps=num_bootstraps, seed=seed).coefficients


def _power_law(seed: int, num_bootstraps: int) -> Recovered:
    x = np.geomspace(1e-2, 1e2, 12)
    y = noisy(3 * x**0.47, seed, 0.05, outlier=0.25)
    return fit_power_law(x, y, num_bootstraps=num_bootstraps, seed=seed).coefficients


def trace(rate: np.ndarray, seed: int, noise: float = 0.001) -> LossTrace:
    """Return losses by the multi-power law itself, summed step by step."""
    step = np.arange(50, rate.size + 1, 50)
    total = np.cumsum(rate) / 1e3
    drop = np.maximum(np.concatenate([[0.0], rate[:-1] - rate[1:]]), 0.0)
    used = np.flatnonzero(drop)
    since = total[step - 1][:, None] - total[used] + rate[used] / 1e3
    since = np.where(step[:, None] > used, since, 0.0)
    gain = (1 - (3.0 * rate[used] ** -0.6 * since + 1) ** -0.6) @ drop[used]
    exact = 2.6 + 0.5 * total[step - 1] ** -0.5 - 0.35 * gain
    return LossTrace(learning_rate=rate, step=step.astype(float), loss=noisy(exact, seed, noise))


SCHEDULES = (
    0.55 + 0.45 * np.cos(np.pi * np.arange(4000) / 4000),
    np.ones(4000),
    np.where(np.arange(4000) < 2000, 1.0, 0.1),
    np.where(np.arange(4000) < 2000, 1.0, 0.4),
)


def _schedule(seed: int, num_bootstraps: int) -> Recovered:
    traces = [trace(rate, 100 * seed + i) for i, rate in enumerate(SCHEDULES)]
    return fit_schedule_law(traces, num_bootstraps=num_bootstraps, seed=seed).coefficients


def _downstream(kind: str) -> Callable[[int, int], Recovered]:
    loss = np.linspace(2.0, 4.0, 40)
    exact = {
        "sigmoid": 0.25 + 0.55 / (1 + np.exp(3 * (loss - 2.9))),
        "exponential": 1 - (0.76 - 30 * np.exp(-1.8 * loss)),
    }[kind]

    def run(seed: int, num_bootstraps: int) -> Recovered:
        generator = np.random.default_rng(seed)
        accuracy = exact + 0.005 * generator.standard_normal(loss.size)
        accuracy[generator.random(loss.size) < OUTLIER_SHARE] += 0.05
        accuracy = np.clip(accuracy, 0, 1)
        return fit_downstream_link(
            loss, accuracy, kind=kind, num_bootstraps=num_bootstraps, seed=seed
        ).coefficients

    return run


def _tuning(seed: int, num_bootstraps: int) -> Recovered:
    generator = np.random.default_rng(seed)
    rows = []
    for n, d in ((1e8, 2e9), (1e8, 2e10), (3e8, 6e9), (3e8, 6e10), (1e9, 2e10)):
        best = np.log([40 * n**-0.6 * d**0.1, 3 * d**0.5])
        off = generator.uniform(-1.8, 1.8, (16, 2))
        excess = 0.004 * off[:, 0] ** 2 + 0.002 * off[:, 1] ** 2 - 0.0015 * off[:, 0] * off[:, 1]
        loss = noisy((2 + 20 / n**0.15) * np.exp(excess), int(generator.integers(2**31)), 5e-4)
        rate, batch = np.exp(best + off).T
        rows.append(np.stack([np.full(16, n), np.full(16, d), rate, batch, loss]))
    table = np.concatenate(rows, axis=1)
    grid = TuningGrid(
        **dict(
            zip(
                ("num_params", "num_tokens", "learning_rate", "tokens_per_step", "loss"),
                table,
                strict=True,
            )
        )
    )
    return fit_tuning_law(grid, num_bootstraps=num_bootstraps, seed=seed).intervals


COMPRESSION = (40.0, 0.2, 1.5)
ORIGINALS = np.array([1e8, 4e8, 1.6e9])
ORIGINAL_LOSS = np.array([3.3, 2.9, 2.6])


def _compression(seed: int, num_bootstraps: int) -> Recovered:
    bits = np.array([2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 16.0])
    n = np.repeat(ORIGINALS, bits.size)
    size = n * np.tile(bits, 3) / 8
    exact = compressed_loss(np.repeat(ORIGINAL_LOSS, bits.size), n, size, COMPRESSION)
    curves = fit_compression_curves(
        n, size, noisy(exact, seed, 0.002), num_bootstraps=num_bootstraps, seed=seed
    )
    return curves.coefficients


def _repeated(seed: int, num_bootstraps: int) -> Recovered:
    n, d = np.meshgrid(np.geomspace(3e7, 3e9, 6), np.geomspace(1e9, 1e11, 6))
    columns = {"num_params": np.tile(n.ravel(), 4), "num_tokens": np.tile(d.ravel(), 4)}
    epochs = np.repeat(np.geomspace(1.0, 200.0, 4), 36)
    columns["unique_tokens"] = columns["num_tokens"] / epochs
    truth = np.array([[*MUENNIGHOFF_C4, 12.0, 6.0]])
    exact = curve_forms()["repeated"].predict(truth, columns)[0]
    found = fit_repeated(Points(loss=noisy(exact, seed, 0.003), **columns))
    return (found.repeat_tokens, found.repeat_params)


def _envelope(seed: int, num_bootstraps: int) -> Recovered:
    n = np.repeat(np.geomspace(2e7, 5e9, 12), 60)
    flops = np.tile(np.geomspace(1e17, 1e22, 60), 12)
    e, a, b, alpha, beta = BASE
    exact = e + a / n**alpha + b / (flops / (6 * n)) ** beta
    run = np.repeat(np.arange(12), 60)
    frontier = fit_envelope(flops, noisy(exact, seed, 0.001, outlier=0.02), n, run).frontier
    lower, upper = frontier.exponent_interval(0.9)
    value = frontier.slope
    return (Coefficient(name="exponent", value=value, lower=lower, upper=upper, level=0.9),)


CASES: Mapping[str, Case] = {
    **{form: _surface(form) for form in SURFACE_TRUTHS},
    "chinchilla, flat": Case(FLAT, _flat),
    "repeated, given law": Case({"R_D": 12.0, "R_N": 6.0}, _repeated),
    **{f"learning curve {form}": _learning_curve(form) for form in LEARNING_CURVES},
    "schedule law": Case(
        {"L0": 2.6, "A": 0.5, "alpha": 0.5, "B": 0.35, "C": 3.0, "beta": 0.6, "gamma": 0.6},
        _schedule,
    ),
    "downstream sigmoid": Case(
        {"floor": 0.25, "ceiling": 0.8, "slope": 3.0, "middle_loss": 2.9}, _downstream("sigmoid")
    ),
    "downstream exponential": Case(
        {"epsilon": 0.76, "k": 30.0, "gamma": 1.8}, _downstream("exponential")
    ),
    "critical batch": Case(
        {"min_steps": 1000.0, "min_examples": 4e6, "balanced_batch": 4000.0}, _critical_batch
    ),
    "power law": Case({"scale": 3.0, "exponent": 0.47}, _power_law),
    "rate and batch": Case(
        {"rate_N": -0.6, "rate_D": 0.1, "batch_N": 0.0, "batch_D": 0.5}, _tuning
    ),
    "compression": Case(
        dict(zip(("c", "gamma_N", "gamma"), COMPRESSION, strict=True)), _compression
    ),
    "envelope": Case({"exponent": 0.37 / 0.72}, _envelope),
}
