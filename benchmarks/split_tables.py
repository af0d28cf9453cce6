"""Tables of final losses and of splits as the benchmarks of the curves read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from planner.curves import read_table
from planner.curves.points import FLOPS_PER_PARAM_TOKEN
from planner.errors import ConfigError

__all__ = ["read_loss_table", "read_splits"]

NO_LIMIT = {
    "train_max_flops": np.inf,
    "train_max_params": np.inf,
    "test_min_flops": 0.0,
    "test_max_flops": np.inf,
    "test_min_params": 0.0,
    "test_max_params": np.inf,
}
"""Limits of a split, each with the value that excludes nothing."""


def _require(table: pd.DataFrame, columns: tuple[str, ...], path: str | Path) -> None:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ConfigError(
            f"{path} lacks the columns {', '.join(missing)}: it has "
            f"{', '.join(map(str, table.columns))}."
        )


def read_loss_table(path: str | Path) -> pd.DataFrame:
    """Return the rows with a set, num_params, num_tokens, train_flops and loss that can be used.

    Without train_flops, or where a row lacks it, it is 6 N D. Rows whose numbers are not positive
    and finite are left out, and said.
    """
    table = read_table(Path(path))
    _require(table, ("set", "num_params", "num_tokens", "loss"), path)
    table["set"] = table["set"].astype(str)
    six_nd = FLOPS_PER_PARAM_TOKEN * table["num_params"].astype(float) * table["num_tokens"]
    table["train_flops"] = table["train_flops"].fillna(six_nd) if "train_flops" in table else six_nd
    numbers = table[["num_params", "num_tokens", "train_flops", "loss"]].astype(float)
    usable = ((numbers > 0) & np.isfinite(numbers)).all(axis=1)
    if not usable.all():
        print(f"{int((~usable).sum())} of {len(table)} rows left out: not positive and finite")
    return table.assign(**numbers)[usable]


def read_splits(path: str | Path) -> pd.DataFrame:
    """Return splits with their names as text; a limit that the file lacks excludes nothing."""
    table = read_table(Path(path))
    _require(table, ("set", "split"), path)
    limits = {
        name: table[name].fillna(default) if name in table else default
        for name, default in NO_LIMIT.items()
    }
    return table.assign(set=table["set"].astype(str), split=table["split"].astype(str), **limits)
