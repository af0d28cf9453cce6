"""Predictions for the rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from planner.curves.forms import find_form
from planner.curves.law import ScalingLaw
from planner.curves.tables import ENGINE_NAMES, column_numbers, require_mapped
from planner.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["predict_table"]


def predict_table(
    law: ScalingLaw,
    table: pd.DataFrame,
    *,
    column_map: Mapping[str, str] | None = None,
    level: float | None = None,
) -> pd.DataFrame:
    """Return a copy of the table with loss, loss_lower, loss_upper and extrapolation_factor.

    Args:
        law: A fitted law.
        table: With num_params, num_tokens and what else the form needs; train_flops if it is not
            6 N D.
        column_map: {quantity: column}; what is said of the loss, which is predicted, is ignored.
        level: Of the prediction interval; absent means that of the fit.

    Raises:
        ConfigError: A column is missing, the map names none, or a value is not a positive number.
    """
    present = [str(name) for name in table.columns]
    needed = {name for c in law.components for name in find_form(c.form).columns}
    names = {name: (column_map or {}).get(name, name) for name in needed | {"train_flops"}}
    given = {name: text for name, text in (column_map or {}).items() if name != "loss"}
    require_mapped(present, given)
    for name, other in ENGINE_NAMES.items():
        if name in names and names[name] not in present and other in present:
            names[name] = other
    missing = [names[name] for name in sorted(needed) if names[name] not in present]
    if missing:
        raise ConfigError(
            f"to predict, this law needs the columns {', '.join(sorted(needed))}: the table lacks "
            f"{', '.join(missing)}. {did_you_mean(missing[0], present)}",
            hint=f"Name the column that holds it, e.g. --map {sorted(needed)[0]}=COLUMN.",
        )
    rows = table.reset_index(drop=True)  # so that a message can count rows
    values = {
        name: column_numbers(rows, column) for name, column in names.items() if column in present
    }
    predicted = law.predict(
        values.pop("num_params"), values.pop("num_tokens"), level=level, **values
    )
    result = table.copy()
    for column in ("loss", "loss_lower", "loss_upper", "extrapolation_factor"):
        result[column] = getattr(predicted, column)
    return result
