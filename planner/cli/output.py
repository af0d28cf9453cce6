"""How verbs print: one JSON document, or a table that fits the terminal."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

__all__ = ["echo_json", "echo_note", "echo_table", "plain"]


def plain(value: object) -> Any:
    """Return a value as JSON can hold it; a number that is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return plain(value.item()) if hasattr(value, "item") else str(value)


def echo_json(value: object) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(plain(value), indent=2))


def echo_note(text: str) -> None:
    """Print a message on stderr."""
    click.echo(text, err=True)


def echo_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[int] = (0,)
) -> None:
    """Print a table on stdout: drawn on a terminal, tab-separated where it is not one.

    Args:
        headings: One per column.
        rows: Cells as text.
        left: Columns that are aligned to the left; the others hold numbers.
    """
    if not sys.stdout.isatty():
        for row in [headings, *rows]:
            click.echo("\t".join(row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
