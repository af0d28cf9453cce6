"""Arguments that the benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["table_file"]


def table_file(text: str) -> Path:
    """Return the path of a table, or say that it is missing (argparse's `type`)."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(
            f"{path} is not a file: the head of this script says what the table holds"
        )
    return path
