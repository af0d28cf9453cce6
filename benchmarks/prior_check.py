"""Whether the constants of the anchored form were fitted to the sets that they are scored on.

    python benchmarks/prior_check.py --points points.csv --splits splits.csv

For each family of sets: temper, compute power and tokens-per-parameter band are chosen on the
other families alone, and scored on this one, beside the constants that are shipped.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import product

import numpy as np
import pandas as pd
from curves import APART, as_points, family_of

from planner.curves import Points, anchored, curve_forms

GRID = list(product((0.1, 0.3, 1.0), (0.0, 0.25, 0.5, 0.75), (5.0, 10.0, 1e6)))
"""(temper, compute power, factor of the band; 1e6 is no band)."""

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
        test = rows[(rows.train_flops >= split.test_min_flops)]
        family = family_of(str(split["set"]))
        if family not in APART and train.num_tokens.nunique() >= 3:
            cases.append((family, as_points(train), as_points(test)))
    return cases


def error_of(case: Case, setting: tuple[float, float, float]) -> float:
    """Return the median relative error in percent with these constants."""
    names = ("TEMPER", "COMPUTE_POWER", "TOKENS_PER_PARAM_FACTOR")
    shipped = [getattr(anchored, name) for name in names]
    for name, value in zip(names, setting, strict=True):
        setattr(anchored, name, value)
    _, train, test = case
    fitted, _ = anchored.fit_anchored(
        train.num_params, train.num_tokens, train.loss, train.compute_flops
    )
    for name, value in zip(names, shipped, strict=True):
        setattr(anchored, name, value)
    loss = curve_forms()["anchored"].predict(fitted.params, test.covariates())[0]
    return 100 * float(np.median(np.abs(loss / test.loss - 1)))


def main() -> None:
    """Print the errors with constants from other families and with those shipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", required=True)
    parser.add_argument("--splits", required=True)
    arguments = parser.parse_args()
    cases = read_cases(pd.read_csv(arguments.points), pd.read_csv(arguments.splits))
    errors = np.array([[error_of(case, setting) for setting in GRID] for case in cases])
    shipped = (anchored.TEMPER, anchored.COMPUTE_POWER, anchored.TOKENS_PER_PARAM_FACTOR)
    place = GRID.index(shipped)
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
