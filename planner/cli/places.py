"""What a verb's argument stands for: a file, a folder, or the name of a run."""

from __future__ import annotations

from pathlib import Path

from planner.errors import NotFoundError
from planner.run_folder import RunFolder

__all__ = ["run_or_file"]


def run_or_file(text: str, runs: Path | None) -> Path:
    """Return the file or folder at a path, or the folder of the run of that name.

    Raises:
        NotFoundError: There is neither.
    """
    path = Path(text)
    if path.exists():
        return path
    if path.suffix in (".csv", ".parquet", ".json"):
        raise NotFoundError(f"no file at {text!r}.", hint="Give a file, or the name of a run.")
    return RunFolder.open(text, runs).path
