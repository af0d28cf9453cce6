"""What a verb's arguments stand for: files, folders, names of runs, columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from planner.errors import ConfigError, NotFoundError
from planner.run_folder import RunFolder

__all__ = ["column_map", "run_or_file", "written"]


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


def column_map(mappings: tuple[str, ...]) -> dict[str, str]:
    """Return {quantity: column} of arguments such as `loss=val_loss`.

    Raises:
        ConfigError: One has another form.
    """
    columns = {}
    for text in mappings:
        name, equals, column = text.partition("=")
        if not (equals and name and column):
            raise ConfigError(f"--map takes QUANTITY=COLUMN: got {text!r}.")
        columns[name] = column
    return columns


@contextmanager
def written(path: Path, option: str) -> Iterator[Path]:
    """Give a path to write to.

    Raises:
        ConfigError: The path cannot be written; the hint names the option.
    """
    try:
        yield path
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror or error}.",
            hint=f"Name another place with {option}.",
        ) from error
