"""Extrapolation of learning curves: M1 to M4 and the broken power law.

    python benchmarks/learning_curves.py --data learning_curves.csv

Each curve is fitted on the rows marked as training and scored on the others, by median relative
error; the pooled figure is the median over curves.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
from arguments import table_file

from planner.curves import fit_learning_curve, learning_curve_forms


def main() -> None:
    """Print errors per form and the CPU time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=table_file, required=True)
    parser.add_argument("--bootstraps", type=int, default=0, help="Behind intervals; 0 is none.")
    arguments = parser.parse_args()
    table, draws = pd.read_csv(arguments.data), arguments.bootstraps
    forms = [*learning_curve_forms(), "best"]
    errors: dict[str, list[float]] = {form: [] for form in forms}
    pooled: dict[str, list[np.ndarray]] = {form: [] for form in forms}
    seconds = dict.fromkeys(forms, 0.0)
    groups = list(table.groupby(["task", "model"]))
    for _, rows in groups:
        train, test = rows[rows.is_training_row == 1], rows[rows.is_training_row == 0]
        for form in forms:
            started = time.process_time()
            curve = fit_learning_curve(
                train.seen_examples, train.error, form=form, num_bootstraps=draws
            )
            seconds[form] += time.process_time() - started
            off = np.abs(curve.predict(test.seen_examples) / test.error.to_numpy() - 1)
            errors[form].append(100 * float(np.median(off)))
            pooled[form].append(100 * off)
    print(f"{len(groups)} curves; % error: median over curves, over points; CPU s for all curves")
    for form in forms:
        points = np.median(np.concatenate(pooled[form]))
        print(f"{form:5s} {np.median(errors[form]):6.2f} {points:6.2f}  {seconds[form]:.2f} s")
    total = sum(value for form, value in seconds.items() if form != "best")
    print(f"all of m1 to m4 and bnsl: {total:.2f} CPU s")


if __name__ == "__main__":
    main()
