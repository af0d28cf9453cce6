"""Tables at the door: a run folder, CSV or Parquet to `Points`.

Rows that cannot be fitted are left out and counted by reason; tables that are wrong are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.curves.arrays import FloatArray, IntArray
from planner.curves.checks import LARGEST_COUNT, is_fraction
from planner.curves.points import OPTIONAL, REQUIRED, Points
from planner.curves.stable import (
    NOT_CONSTANT,
    NOT_TOLD,
    StableLosses,
    rows_by_schedule,
    stable_losses_of_run,
)
from planner.errors import ConfigError, FitError, NotFoundError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ENGINE_NAMES", "points_from_table", "read_points", "read_table", "require_mapped"]

EVERY_ROW = ("num_params", "num_tokens", "train_flops", "unique_tokens")
"""Columns without gaps; of the others, a number that is absent is no wrong one."""
FRACTIONS = ("sparsity_fraction", "warmup_fraction")
LABELS = ("run", "schedule")
"""Columns of names instead of numbers."""
KNOWN = (*REQUIRED, *OPTIONAL, *LABELS)
ENGINE_NAMES = {"num_tokens": "train_tokens", "loss": "val_loss", "schedule": "schedule_name"}
"""What the results table of a run calls the columns of a curve."""

REPORTS, LINEAGE = "curves.parquet", "lineage.parquet"
"""Of a run folder: one row per report, and who copied whom."""

COMPLETED = "completed"

PLAUSIBLE = (1e-30, 1e30)
"""No loss lies outside, whatever its unit: what does is a diverged run or a damaged number."""

MAX_NAMED = 12
"""Columns that a message lists."""

ONE_PER_TABLE = ("loss_unit", "validation_set")
"""Columns that say what a loss is: losses of two kinds do not lie on one law."""


def read_points(path: str | Path, column_map: Mapping[str, str] | None = None) -> Points:
    """Return the points of a run folder, a Parquet file or a CSV file.

    Args:
        path: A run folder (its results.parquet is read), *.parquet or *.csv.
        column_map: {quantity: column of the table}, e.g. {"loss": "val_loss"}.

    Raises:
        NotFoundError: There is no such file.
        ConfigError: The table lacks a column, holds text, or holds sizes that cannot be.
    """
    source = Path(path)
    table = read_table(source)
    if not (source / REPORTS).is_file():
        return points_from_table(table, column_map)
    lineage = source / LINEAGE
    copied = set(read_table(lineage)["trial"]) if lineage.is_file() else ()
    return points_from_table(table, column_map, reports=read_table(source / REPORTS), copied=copied)


def read_table(path: Path) -> pd.DataFrame:
    """Return the table of a run folder, a Parquet file or a CSV file.

    Raises:
        NotFoundError: There is no such file.
        ConfigError: It cannot be read as a table.
    """
    import pandas as pd

    source = path / "results.parquet" if path.is_dir() else path
    if not source.is_file():
        raise NotFoundError(
            f"no table of results at {source}.",
            hint="Give a run folder that has results.parquet, or a .parquet or .csv file.",
        )
    try:
        if source.suffix == ".parquet":
            return pd.read_parquet(source)
        table = pd.read_csv(source, sep="\t" if source.suffix == ".tsv" else ",")
    except (ValueError, OSError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"{source} cannot be read as a table: {why}") from error
    return table.rename(columns=lambda name: str(name).strip())


def points_from_table(
    table: pd.DataFrame,
    column_map: Mapping[str, str] | None = None,
    *,
    reports: pd.DataFrame | None = None,
    copied: Collection[str] = (),
) -> Points:
    """Return the usable rows of a table as float64 columns, the others counted.

    Rows are left out, and counted, when their `state` is not completed, when the loss is absent,
    not finite, not positive or beyond 1e-30 to 1e30 (a diverged run), when they repeat an earlier
    row exactly, and when they lie within a run that decays its learning rate.

    Args:
        table: One row per training, or several with one `run`.
        column_map: {quantity: column of the table}.
        reports: Of the trials of a sweep, one row each: trial, train_tokens, train_flops, val_loss.
        copied: Trials of a population that went on from another's checkpoint.

    Raises:
        ConfigError: A required column is missing, a number is text, a quantity of a usable row is
            not positive and finite, or the losses are of more than one unit or validation set.
        FitError: The losses are of several tokenizers.
    """
    names = _column_names(list(map(str, table.columns)), column_map or {})
    dropped: dict[str, int] = {}
    table = table.reset_index(drop=True)  # so that a message can count rows
    mask = np.ones(len(table), dtype=bool)
    if "state" in table.columns:
        states = table["state"].astype(str).str.rsplit(".", n=1).str[-1].str.lower().to_numpy()
        for state in np.unique(states[states != COMPLETED]):
            dropped[f"state is {state}"] = int((states == state).sum())
        mask &= states == COMPLETED
    kept = table.loc[mask]
    _require_one_tokenizer(kept, names["loss"])
    _require_one_kind_of_loss(kept)
    values: dict[str, Any] = {
        name: column_numbers(kept, column) for name, column in names.items() if name not in LABELS
    }
    if "run" in names:
        values["run"] = _run_numbers(kept[names["run"]])
    if "schedule" in names:
        schedules = kept[names["schedule"]].fillna("").astype(str).str.strip().str.lower()
        values["schedule"] = schedules.to_numpy(dtype=str)
    points = Points(**values, dropped=dropped, columns=names)
    points = points.where(np.isfinite(points.loss), reason="loss is absent or not finite")
    points = points.where(points.loss > 0, reason="loss is not positive")
    low, high = PLAUSIBLE
    is_plausible = (points.loss > low) & (points.loss < high)
    points = points.where(is_plausible, reason=f"loss is beyond {low:g} to {high:g}")
    points = _without_empty_columns(points)
    _require_possible(points)
    points = _without_duplicates(points)
    if reports is not None and len(reports):
        return replace(points, stable=stable_losses_of_run(table, reports, names, copied))
    return _by_schedule(points)


def _without_empty_columns(points: Points) -> Points:
    """Take a column for absent that says nothing of the rows that are left."""
    empty: dict[str, Any] = {
        name: None
        for name, column in points.covariates().items()
        if name in OPTIONAL and np.isnan(column).all()
    }
    return replace(points, **empty)


def _column_names(present: list[str], column_map: Mapping[str, str]) -> dict[str, str]:
    require_mapped(present, column_map)
    names = dict(column_map)
    for name in KNOWN:
        for column in (name, ENGINE_NAMES.get(name, name)):
            if name not in names and column in present:
                names[name] = column
    for column in (*names.values(), "state", "tokenizer", *ONE_PER_TABLE):
        if present.count(column) > 1:
            raise ConfigError(
                f"the table has {present.count(column)} columns named {column!r}.",
                hint="Rename or leave out all but one.",
            )
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise ConfigError(
            f"a curve needs the columns {', '.join(REQUIRED)}: the table lacks "
            f"{', '.join(missing)}. It has {_listed(present)}.",
            hint=_separator_hint(present)
            or f"Name the column that holds it, e.g. --map {missing[0]}=COLUMN.",
        )
    return names


def require_mapped(present: list[str], column_map: Mapping[str, str]) -> None:
    """Refuse a map of what is no quantity of a curve, or to a column that the table lacks.

    Raises:
        ConfigError: With what may have been meant.
    """
    for name, column in column_map.items():
        if name not in KNOWN:
            raise ConfigError(f"no quantity {name!r} in a curve. {did_you_mean(name, KNOWN)}")
        if column not in present:
            raise ConfigError(
                f"the table has no column {column!r} (mapped to {name}). "
                f"{did_you_mean(column, present)}"
            )


def _listed(present: list[str]) -> str:
    """Return the names of columns, as many and as much of each as a message can hold."""
    if not present:
        return "no column"
    names = [name if len(name) <= 60 else f"{name[:60]}..." for name in present[:MAX_NAMED]]
    more = len(present) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _separator_hint(present: list[str]) -> str | None:
    """Return what to do with a file whose header was read as one column."""
    found = [mark for mark in (";", "\t", "|") if len(present) == 1 and mark in present[0]]
    return f"Its columns are separated by {found[0]!r}: write it with commas." if found else None


def column_numbers(table: pd.DataFrame, column: str) -> FloatArray:
    """Return a column as float64: products of integer columns overflow at 9.2e18."""
    import pandas as pd

    kind = table[column].dtype
    if pd.api.types.is_bool_dtype(kind) or pd.api.types.is_datetime64_any_dtype(kind):
        raise ConfigError(f"column {column!r} must hold numbers: it holds {kind} values.")
    numbers = pd.to_numeric(table[column], errors="coerce")
    text = numbers.isna() & table[column].notna() & (table[column].astype(str).str.lower() != "nan")
    if text.any():
        first = int(table.index[text.to_numpy()][0])
        raise ConfigError(
            f"column {column!r} must hold numbers: {int(text.sum())} of {len(table)} rows do not, "
            f"the first is {str(table[column].loc[first])!r} in row {first + 1}."
        )
    return np.asarray(numbers.to_numpy(dtype=np.float64, na_value=np.nan))


def _run_numbers(column: pd.Series) -> IntArray:
    """Return a number per run; a row without a name is a run of its own."""
    import pandas as pd

    codes = np.array(pd.factorize(column)[0], dtype=np.int64)
    unnamed = codes < 0
    codes[unnamed] = codes.max(initial=-1) + 1 + np.arange(int(unnamed.sum()))
    return codes


def _require_one_kind_of_loss(table: pd.DataFrame) -> None:
    for name in ONE_PER_TABLE:
        if name not in table.columns:
            continue
        kinds = sorted({str(value) for value in table[name].dropna()})
        if len(kinds) > 1 or (kinds and table[name].isna().any()):
            absent = int(table[name].isna().sum())
            also = f", and {absent} rows do not say" if absent else ""
            raise ConfigError(
                f"all losses of a table must have one {name}: got {', '.join(kinds)}{also}.",
                hint="Fit each on its own.",
            )


def _require_possible(points: Points) -> None:
    for name in (*REQUIRED[:2], *OPTIONAL):
        values = getattr(points, name)
        if values is None:
            continue
        is_good, rule = (values > 0) & (values < LARGEST_COUNT), "be positive and finite"
        if name in FRACTIONS:
            is_good, rule = is_fraction(name, values), "lie in 0 to 1"
        bad = ~(is_good if name in EVERY_ROW else is_good | np.isnan(values))
        if bad.any():
            first = float(values[bad][0])
            hint = "Correct these rows, or leave them out of the table."
            if name == "train_flops" and (values < 0).any():
                hint = (
                    "Negative FLOPs are an int64 overflow of 6 N D: compute them in floating point."
                )
            elif LARGEST_COUNT <= first < np.inf:
                hint = f"Above {LARGEST_COUNT:g} a number counts as damaged. {hint}"
            raise ConfigError(
                f"{name} must {rule}: {int(bad.sum())} of {len(points)} rows do not, the first is "
                f"{first:g}.",
                hint=hint,
            )


def _require_one_tokenizer(table: pd.DataFrame, loss: str) -> None:
    """Refuse losses per token of several tokenizers: a longer token costs more nats."""
    if "tokenizer" not in table.columns or loss == "val_bits_per_byte":
        return
    found = sorted(table["tokenizer"].dropna().astype(str).unique())
    if len(found) > 1:
        raise FitError(
            f"losses in nats per token of different tokenizers do not compare: the rows have "
            f"{', '.join(found)}.",
            hint="Fit bits per byte, --map loss=val_bits_per_byte, or the rows of one tokenizer.",
        )


def _without_duplicates(points: Points) -> Points:
    columns = [points.num_params, points.num_tokens, points.loss]
    columns += [value for name, value in points.covariates().items() if name not in REQUIRED]
    first = np.unique(np.stack(columns, axis=1), axis=0, return_index=True)[1]
    mask = np.zeros(len(points), dtype=bool)
    mask[first] = True
    return points.where(mask, reason="repeats an earlier row exactly")


def _by_schedule(points: Points) -> Points:
    """Part losses during a run from final ones, where the table tells the schedule."""
    if points.run is None or not len(points):
        return points
    is_stable, is_midway, is_untold = rows_by_schedule(
        points.run,
        points.num_params,
        points.num_tokens,
        learning_rate=points.learning_rate,
        schedule=points.schedule,
    )
    if not (is_stable | is_midway | is_untold).any():
        return points
    rows = points.where(is_stable)
    left_out = {NOT_CONSTANT: int((is_midway & ~is_stable).sum()), NOT_TOLD: int(is_untold.sum())}
    stable = StableLosses(
        train_flops=rows.compute_flops,
        loss=rows.loss,
        num_params=rows.num_params,
        run=points.run[is_stable],
        dropped={why: number for why, number in left_out.items() if number},
    )
    finals = points.where(~is_midway, reason="before the end of its schedule")
    return replace(finals, stable=stable)
