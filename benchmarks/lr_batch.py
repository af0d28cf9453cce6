"""Loss gap of the predicted learning rate and batch on sizes that the fit has not seen.

    python benchmarks/lr_batch.py --data lr_batch_grid.csv

For each size: the law is fitted on the other sizes, on a random quarter of the settings of every
grid, and predicts each grid of the held-back size; the gap is the loss at the grid point nearest
to the prediction over the least loss of that grid. Twenty random quarters.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from arguments import table_file

from planner.curves import TuningGrid, fit_tuning_law, read_table
from planner.errors import ConfigError, PlannerError

SHARE, REPEATS, TOKENS_PER_SEQUENCE = 0.25, 20, 2048


def read_grid(path: str) -> pd.DataFrame:
    """Return the finished runs of a table; where it has no `smooth loss`, its `loss` counts."""
    table = read_table(Path(path))
    if "smooth loss" not in table and "loss" in table:
        table["smooth loss"] = table["loss"]
    missing = [name for name in ("N", "D", "lr", "bs", "smooth loss") if name not in table]
    if missing:
        raise ConfigError(f"{path} lacks the columns {', '.join(missing)}.")
    if table.N.nunique() < 2:
        raise ConfigError(f"{path} must have two sizes or more: one is held back.")
    return table[np.isfinite(table["smooth loss"])]


def as_grid(rows: pd.DataFrame) -> TuningGrid:
    """Return rows of the table as a grid."""
    return TuningGrid(
        num_params=rows.N.to_numpy(float),
        num_tokens=rows.D.to_numpy(float),
        learning_rate=rows.lr.to_numpy(float),
        tokens_per_step=rows.bs.to_numpy(float) * TOKENS_PER_SEQUENCE,
        loss=rows["smooth loss"].to_numpy(float),
    )


def gap(cell: pd.DataFrame, rate: float, batch: float) -> float:
    """Return the loss at the nearest grid point over the least, minus one, in percent."""
    distance = (np.log(cell.lr) - np.log(rate)) ** 2 + (
        np.log(cell.bs * TOKENS_PER_SEQUENCE) - np.log(batch)
    ) ** 2
    return 100 * float(cell.loc[distance.idxmin(), "smooth loss"] / cell["smooth loss"].min() - 1)


def main() -> None:
    """Print the gaps, beside those of the published rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=table_file, required=True)
    table = read_grid(parser.parse_args().data)
    cells = dict(iter(table.groupby(["N", "D"])))
    published = [
        gap(rows, 1.79 * n**-0.713 * d**0.307, 0.58 * d**0.571) for (n, d), rows in cells.items()
    ]
    pooled: list[float] = []
    for size in sorted(table.N.unique()):
        gaps = []
        for seed in range(REPEATS):
            seen = [
                rows.sample(frac=SHARE, random_state=seed)
                for (n, _), rows in cells.items()
                if n != size
            ]
            law = fit_tuning_law(as_grid(pd.concat(seen)), num_bootstraps=10)
            for (n, d), rows in cells.items():
                if n == size:
                    setting = law.predict(n, d)
                    gaps.append(
                        gap(rows, float(setting.learning_rate), float(setting.tokens_per_step))
                    )
        pooled += gaps
        print(
            f"unseen size {size / 1e6:.0f}M: mean gap {np.mean(gaps):.3f} %, max {max(gaps):.2f} %; "
            f"exponents rate N {law.coefficients[0, 1]:.2f} D {law.coefficients[0, 2]:.2f}, "
            f"batch N {law.coefficients[1, 1]:.2f} D {law.coefficients[1, 2]:.2f}"
        )
    print(
        f"all: mean {np.mean(pooled):.3f} %, median {np.median(pooled):.3f} %, "
        f"p90 {np.quantile(pooled, 0.9):.3f} %, max {max(pooled):.2f} % of {len(pooled)}"
    )
    print(
        f"published rule (fitted on these and more): mean {np.mean(published):.3f} %, "
        f"max {max(published):.2f} %"
    )


if __name__ == "__main__":
    try:
        main()
    except PlannerError as error:
        raise SystemExit(f"error: {error}") from error
