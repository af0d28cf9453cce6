"""`planner predict`: the loss that a law expects, with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.output import echo_json, echo_note, echo_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["command"]


@click.command()
@click.argument("laws")
@click.option(
    "--at", "table", type=click.Path(path_type=Path), help="Rows to predict, CSV or Parquet."
)
@click.option("--params", help="One size instead of a table, e.g. 1.3B.")
@click.option("--tokens", help="With --params, e.g. 26B.")
@click.option("--level", type=float, help="Of the intervals; default: that of the fit.")
@click.option("--map", "mappings", multiple=True, help="QUANTITY=COLUMN, e.g. num_tokens=tokens.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write the table here, CSV or Parquet."
)
@click.option("--runs", type=click.Path(path_type=Path), help="Folder of runs.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(
    laws: str,
    table: Path | None,
    params: str | None,
    tokens: str | None,
    level: float | None,
    mappings: tuple[str, ...],
    out: Path | None,
    runs: Path | None,
    as_json: bool,
) -> None:
    """Predict loss at sizes and token counts from LAWS, a laws.json or a run.

    \b
    Examples:
      planner predict laws.json --params 1.3B --tokens 26B
      planner predict laws.json --at plans.csv --out predicted.csv --level 0.9
    """  # noqa: D301
    import pandas as pd

    from planner.cli.places import column_map, run_or_file, written
    from planner.curves import ScalingLaw, predict_table
    from planner.errors import ConfigError
    from planner.units import parse_count

    source = run_or_file(laws, runs)
    law = ScalingLaw.load(source / "laws.json" if source.is_dir() else source)
    if (table is None) == (params is None) or (params is None) != (tokens is None):
        raise ConfigError("predict at a table (--at FILE) or at one point (--params N --tokens D).")
    if params is not None and tokens is not None:
        rows = pd.DataFrame(
            {"num_params": [parse_count(params)], "num_tokens": [parse_count(tokens)]}
        )
    else:
        rows = _read(Path(str(table)))
    predicted = predict_table(law, rows, column_map=column_map(mappings), level=level)
    if out is not None:
        with written(out, "--out"):
            _write(predicted, out)
        echo_note(f"wrote {out} ({len(predicted)} rows)")
    if as_json:
        echo_json(predicted.to_dict(orient="records"))
    elif out is None:
        columns = [str(name) for name in predicted.columns]
        cells = ([f"{v:.5g}" if isinstance(v, float) else str(v) for v in row]
                 for row in predicted.itertuples(index=False))  # fmt: skip
        echo_table(columns, cells, left=())


def _read(path: Path) -> pd.DataFrame:
    from planner.curves import read_table

    return read_table(path)


def _write(table: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False)
