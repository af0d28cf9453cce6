"""The best size by surface, IsoFLOP profiles and envelope, on runs at a constant learning rate.

    python benchmarks/best_sizes.py --points points.csv [--set gemstones_hot]

`points.csv` has the columns set, num_params, num_tokens, train_flops and loss; rows of one size are
taken as one run. Prints the methods' exponents and sizes, once with all rows and once with those of
at most a tenth of the compute, both at the largest compute of the set.
"""

from __future__ import annotations

import argparse

import pandas as pd
from arguments import table_file

from planner.curves import best_sizes, fit


def main() -> None:
    """Print one table per window of compute."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=table_file, required=True)
    parser.add_argument("--set", default="gemstones_hot", dest="name")
    arguments = parser.parse_args()
    rows = pd.read_csv(arguments.points)
    rows = rows[rows.set == arguments.name].drop(columns="set")
    rows = rows.assign(run=rows.num_params, schedule="constant")
    largest = float(rows.train_flops.max())
    for share in (1.0, 0.1):
        part = rows[rows.train_flops <= share * largest * (1 + 1e-9)]
        print(f"{arguments.name}, {len(part)} rows up to {share * largest:.3g}; at {largest:.3g}")
        for row in best_sizes(fit(part), largest):
            if row.refusal is not None or row.num_params is None:
                print(f"  {row.method:12s} {row.refusal}")
                continue
            slope = "" if row.exponent is None else (
                f"{row.exponent:.3f} ({row.exponent_lower:.3f} to {row.exponent_upper:.3f})"
            )  # fmt: skip
            size, low, high = row.num_params, row.num_params_lower, row.num_params_upper
            print(f"  {row.method:12s} {slope:26s} {size:.3g} ({low:.3g} to {high:.3g})")


if __name__ == "__main__":
    main()
