"""Whether the constants of the anchored form were fitted to the sets that they are scored on.

    python benchmarks/prior_check.py --points points.csv --splits splits.csv

The form averages over a low and a high value of four constants. For each family of sets other
pairs are chosen on the other families alone, and scored on this one, beside those shipped, on the
given splits and on those that `curves.py` makes.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import product

import numpy as np
import pandas as pd
from arguments import table_file
from curves import APART, as_points, family_of, make_splits
from split_tables import read_loss_table, read_splits

from planner.curves import Points, anchored, curve_forms

Pair = tuple[float, float]

NAMES = ("TEMPER", "COMPUTE_POWER", "TOKENS_PER_PARAM_FACTOR", "SHORT_TOKENS")

GRID: list[tuple[Pair, ...]] = list(
    product(
        ((0.15, 0.6), (0.5, 2.0)),
        ((0.0, 0.5), (0.25, 0.75)),
        ((5.0, 20.0), (10.0, 1e6)),
        ((1.0, 1.0), (2e8, 2e9), (6e8, 6e9), (2e9, 2e10)),
    )
)
"""Pairs of each constant; 1e6 is no band, one token no discount of short trainings."""

Case = tuple[str, Points, Points]


def read_cases(table: pd.DataFrame, splits: pd.DataFrame) -> list[Case]:
    """Return (family, train, test) of every split that identifies a law."""
    cases = []
    for _, split in splits.iterrows():
        rows = table[table["set"] == split["set"]]
        train = rows[
            (rows.train_flops <= split.train_max_flops)
            & (rows.num_params <= split.train_max_params)
        ]
        test = rows[
            (rows.train_flops >= split.test_min_flops) & (rows.train_flops <= split.test_max_flops)
        ]
        family = family_of(str(split["set"]))
        if family not in APART and train.num_tokens.nunique() >= 3:
            cases.append((family, as_points(train), as_points(test)))
    return cases


def error_of(case: Case, setting: tuple[Pair, ...]) -> float:
    """Return the median relative error in percent with these constants."""
    shipped = [getattr(anchored, name) for name in NAMES]
    for name, value in zip(NAMES, setting, strict=True):
        setattr(anchored, name, value)
    _, train, test = case
    fitted, _ = anchored.fit_anchored(
        train.num_params, train.num_tokens, train.loss, train.compute_flops
    )
    for name, value in zip(NAMES, shipped, strict=True):
        setattr(anchored, name, value)
    loss = curve_forms()["anchored"].predict(fitted.params, test.covariates())[0]
    return 100 * float(np.median(np.abs(loss / test.loss - 1)))


def main() -> None:
    """Print the errors with constants from other families and with those shipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=table_file, required=True)
    parser.add_argument("--splits", type=table_file, required=True)
    arguments = parser.parse_args()
    table = read_loss_table(arguments.points)
    splits = pd.concat([read_splits(arguments.splits), make_splits(table)])
    cases = read_cases(table, splits)
    errors = np.array([[error_of(case, setting) for setting in GRID] for case in cases])
    place = GRID.index(tuple(getattr(anchored, name) for name in NAMES))
    families: dict[str, list[int]] = defaultdict(list)
    for i, case in enumerate(cases):
        families[case[0]].append(i)
    held = np.empty(len(cases))
    for family, rows in families.items():
        others = [errors[r].mean(axis=0) for name, r in families.items() if name != family]
        chosen = int(np.mean(others, axis=0).argmin())
        held[rows] = errors[rows, chosen]
        print(
            f"{family:12s} {len(rows)} splits: chosen on others {GRID[chosen]}, mean error "
            f"{errors[rows, chosen].mean():.2f} %; shipped {errors[rows, place].mean():.2f} %"
        )
    for name, values in (("left-family-out", held), ("shipped", errors[:, place])):
        print(
            f"{name:16s} median {np.median(values):.2f}  mean {values.mean():.2f}  "
            f"p90 {np.quantile(values, 0.9):.2f}  max {values.max():.2f}"
        )
    print(f"all {len(GRID)} settings: median error {np.median(errors, axis=0).min():.2f} to "
          f"{np.median(errors, axis=0).max():.2f}, p90 {np.quantile(errors, .9, axis=0).min():.2f} to "
          f"{np.quantile(errors, .9, axis=0).max():.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
