"""Documents of a corpus: from folders, text files, and the text column of JSONL and Parquet files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from planner.errors import ConfigError, did_you_mean

__all__ = ["TABLES", "read_file", "read_table", "walk"]

TABLES: Final = frozenset({".jsonl", ".ndjson", ".parquet"})
"""Endings of files that hold one document per row."""


def walk(root: Path, left_out: frozenset[str]) -> Iterator[Path]:
    """Yield the files below a folder in a fixed order, hidden ones left out."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(n for n in subfolders if n not in left_out and n[0] != ".")
        yield from (Path(folder, name) for name in sorted(files) if name[0] != ".")


def read_file(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"a file of the corpus cannot be read: {path}: {error.strerror}."
        ) from error


def read_table(path: Path, column: str) -> Iterator[bytes]:
    """Yield the documents of a JSONL or Parquet file as UTF-8, row by row.

    Raises:
        ConfigError: The file cannot be read, or a row has no text in the column.
    """
    if path.suffix == ".parquet":
        yield from _read_parquet(path, column)
        return
    for number, line in enumerate(read_file(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: every line must be JSON: {error}.") from error
        text = row.get(column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            known = row if isinstance(row, dict) else {}
            raise ConfigError(
                f"{path}:{number}: every row must hold text in data.text_column={column!r}. "
                + did_you_mean(column, known)
            )
        yield text.encode()


def _read_parquet(path: Path, column: str) -> Iterator[bytes]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ConfigError(f"{path} is no readable Parquet file: {error}.") from error
    names = file.schema_arrow.names
    if column not in names or not pyarrow.types.is_string(file.schema_arrow.field(column).type):
        raise ConfigError(
            f"{path} must hold text in data.text_column={column!r}. " + did_you_mean(column, names)
        )
    for batch in file.iter_batches(columns=[column]):
        for value in batch.column(0):
            if value.is_valid:
                yield value.as_py().encode()
