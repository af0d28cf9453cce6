"""How much of the error of peak memory is an attention that a table does not tell.

    python benchmarks/memory_attention.py measured.csv

Every row with measured memory is estimated as the table says, and with attention that keeps its scores.
Prints a Markdown table; docs/costs.md quotes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from planner.costs.memory import memory_use
from planner.costs.scores import memory_constants_of
from planner.costs.tables import TableRow, read_table

FAR = 0.1
"""Relative error that counts as far off."""


def _errors(rows: Sequence[TableRow], flash: float | None) -> np.ndarray:
    """Return the absolute relative errors of rows, with their own attention or with a given one."""
    found = []
    for row in rows:
        w = row.workload if flash is None else replace(row.workload, flash=flash)
        total = float(memory_use(w, memory_constants_of(row)).total)
        found.append(abs(total / (row.memory_bytes or np.nan) - 1.0))
    return np.array(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("table", type=Path, help="CSV of measured rows.")
    rows = [r for r in read_table(parser.parse_args().table) if isinstance(r, TableRow)]
    rows = [r for r in rows if r.memory_bytes]
    print(
        "| source | rows | as told | of the two, the nearer | off by 10 % | of them near with scores |"
    )
    print("|---|---|---|---|---|---|")
    for source in sorted({r.source for r in rows}):
        own = [r for r in rows if r.source == source]
        told, scores = _errors(own, None), _errors(own, 0.0)
        best, far = np.minimum(told, scores), told > FAR
        cells = [f"{np.median(e):.1%} / {np.quantile(e, 0.9):.1%}" for e in (told, best)]
        cells += [str(int(far.sum())), str(int((far & (scores <= FAR)).sum()))]
        print(f"| {source} | {len(own)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
