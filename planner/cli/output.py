"""How verbs print: one JSON document, or a table that fits the terminal."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import click

__all__ = ["echo_json", "echo_note", "echo_table", "echo_text", "plain"]


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
    """Print a message on stderr, wrapped at words on a terminal."""
    click.echo(_wrapped(text, sys.stderr), err=True)


def echo_text(text: str) -> None:
    """Print sentences on stdout, wrapped at words on a terminal."""
    click.echo(_wrapped(text, sys.stdout))


def _wrapped(text: str, stream: TextIO) -> str:
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(
        click.wrap_text(line, width) if len(line) > width else line for line in text.split("\n")
    )


def echo_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[int] = (0,)
) -> None:
    """Print a table on stdout: drawn on a terminal, tab-separated where it is not one.

    On a terminal that is too narrow for it, each row becomes a paragraph.

    Args:
        headings: One per column.
        rows: Cells as text.
        left: Columns that are aligned to the left; the others hold numbers.
    """
    cells = [list(row) for row in rows]
    if not sys.stdout.isatty():
        for row in [headings, *cells]:
            click.echo("\t".join(row))
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    if sum(widths) + 2 * len(widths) > shutil.get_terminal_size().columns:
        for title, *values in cells:
            named = zip(headings[1:], values, strict=True)
            echo_text(f"{title}: " + ", ".join(f"{name} {value}" for name, value in named if value))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        if i in left:
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    Console().print(table)
