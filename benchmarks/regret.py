"""Regret of the recommended size on IsoFLOP sets: what the choice costs, not what the loss is."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from planner.curves import Points, fit, optimal_allocation
from planner.errors import PlannerError

RATIOS = (10.0, 30.0, 100.0)
BUDGET_TOLERANCE = 0.05
"""Rows whose compute agrees so closely belong to one budget."""
MIN_SIZES_TARGET, MIN_BUDGETS, MIN_POINTS = 5, 3, 12


def budgets_of(rows: pd.DataFrame) -> pd.Series:
    """Return a budget number per row: compute, grouped within the tolerance."""
    order = rows.train_flops.sort_values()
    steps = np.log(order).diff().fillna(0.0) > BUDGET_TOLERANCE
    return steps.cumsum().reindex(rows.index)


def size_curve(rows: pd.DataFrame) -> PchipInterpolator:
    """Return loss against log N of one budget, interpolated monotonically between sizes."""
    mean = rows.groupby(np.log(rows.num_params).round(4)).loss.min()
    return PchipInterpolator(mean.index.to_numpy(), mean.to_numpy())


def regret_cases(table: pd.DataFrame) -> list[tuple[str, float, pd.DataFrame, pd.DataFrame]]:
    """Return (set, ratio, rows to fit, rows of the target budget) of every IsoFLOP set."""
    cases = []
    for name, rows in table.groupby("set"):
        budget = budgets_of(rows)
        sizes = rows.groupby(budget).num_params.nunique()
        flops = rows.groupby(budget).train_flops.median()
        isoflop = sizes.index[sizes >= MIN_SIZES_TARGET]
        if len(isoflop) < MIN_BUDGETS + 1:
            continue
        target = flops[isoflop].idxmax()
        seen = set()
        for ratio in RATIOS:
            train = rows[rows.train_flops <= flops[target] / ratio * 1.01]
            enough = budgets_of(train).nunique() >= MIN_BUDGETS if len(train) else False
            if len(train) < MIN_POINTS or not enough or len(train) in seen:
                continue
            seen.add(len(train))
            actual = float(flops[target] / train.train_flops.max())
            cases.append((str(name), actual, train, rows[budget == target]))
    return cases


def regret_of(num_params: float, target: pd.DataFrame) -> float:
    """Return (L(N) / min L - 1) in percent, N clipped to the measured range."""
    curve = size_curve(target)
    grid = np.linspace(curve.x[0], curve.x[-1], 2001)
    chosen = np.clip(np.log(num_params), curve.x[0], curve.x[-1])
    return 100 * float(curve(chosen) / curve(grid).min() - 1)


def print_regret(table: pd.DataFrame) -> None:
    """Print the regret of every method per set and pooled by ratio."""
    print("\nregret of the recommended size, % of the loss (N recommended / N best)")
    pooled: dict[tuple[str, str], list[float]] = defaultdict(list)
    cases = regret_cases(table)
    if not cases:
        print(
            f"none: no set has {MIN_BUDGETS + 1} budgets of {MIN_SIZES_TARGET} sizes or more, "
            f"and {MIN_POINTS} trainings below the largest"
        )
    for name, ratio, train, target in cases:
        columns = ("num_params", "num_tokens", "loss", "train_flops")
        points = Points(**{c: train[c].to_numpy(dtype=float) for c in columns})
        flops = float(target.train_flops.median())
        sizes = {}
        for form in ("mixture", "chinchilla"):
            try:
                law = fit(points, form=form, num_bootstraps=200)
                sizes[form] = optimal_allocation(law, flops).num_params
            except PlannerError as error:
                print(f"{name} {ratio:.0f}x {form} refused: {error.message}")
        curve = size_curve(target)
        grid = np.linspace(curve.x[0], curve.x[-1], 2001)
        best = np.exp(grid[curve(grid).argmin()])
        label = "about 10x" if ratio < 20 else "about 32x" if ratio < 70 else "about 128x"
        text = []
        for form, size in sizes.items():
            regret = regret_of(size, target)
            pooled[label, form].append(regret)
            text.append(f"{form} {regret:.2f} ({size / best:.2f})")
        print(f"{name[:42]:42s} {ratio:4.0f}x  " + "  ".join(text))
    for (label, form), values in sorted(pooled.items()):
        print(
            f"{label:10s} {form:12s} cases {len(values):2d}  median {np.median(values):.2f}  "
            f"max {max(values):.2f}"
        )


__all__ = ["print_regret", "regret_cases", "regret_of"]
