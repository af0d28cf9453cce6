"""The ledger: an append-only file of JSON lines that is the truth about a run.

A line is written before anything acts on it. A process that is killed loses nothing that was
written; a machine that loses power loses at most the last second, and never a trial's end. What
the lines mean is in `core`; this module knows only that each is a JSON object with a `kind`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

from planner.errors import ConfigError, TrialError

__all__ = ["Ledger", "Line", "read_lines", "recover"]

Line = dict[str, Any]

_SYNC_SECONDS: Final = 1.0
"""Longest time that a line waits to be forced to the disk."""


class Ledger:
    """An open ledger. Use it as a context manager, or close it.

    Args:
        path: The file; it is created if it is not there.

    Raises:
        ConfigError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("ab")
        except OSError as error:
            raise ConfigError(
                f"cannot write the ledger {path}: {error.strerror}.",
                hint="Choose a folder that can be written: --runs DIR, or PLANNER_RUNS.",
            ) from error
        self._synced = time.monotonic()

    def append(self, line: Mapping[str, Any], *, durable: bool = False) -> None:
        """Write one line and hand it to the operating system.

        Args:
            line: What happened; numbers that are not finite are written as null.
            durable: Whether to force it to the disk now.

        Raises:
            TrialError: The disk is full or the file cannot be written any more.
        """
        text = json.dumps(_finite(line), separators=(",", ":"), allow_nan=False)
        try:
            self._file.write(text.encode() + b"\n")
            self._file.flush()
            if durable or time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> TrialError:
        return TrialError(
            f"the ledger {self.path} cannot be written: {error.strerror}.",
            hint="Free disk space, then go on with: planner sweep --resume "
            + self.path.parent.name,
        )

    def close(self) -> None:
        """Force everything to the disk and close the file.

        Raises:
            TrialError: As for `append`; what could not be written is still in hand.
        """
        if self._file.closed:
            return
        try:
            with self._file:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a ledger; a torn last line is left out and the file is not changed.

    Raises:
        TrialError: A line that is not the last one is damaged.
    """
    return _parse(path)[0]


def recover(path: Path) -> tuple[list[Line], str | None]:
    """Return the lines of a ledger, with a torn last line moved to a file beside it.

    Returns:
        The lines, and what was done about a torn line in a sentence, or None.

    Raises:
        TrialError: A line that is not the last one is damaged.
    """
    lines, whole_bytes = _parse(path)
    content = path.read_bytes() if path.exists() else b""
    torn = content[whole_bytes:]
    if not torn:
        return lines, None
    if torn.strip():
        aside = path.with_name(f"{path.name}.torn-{len(lines) + 1}")
        aside.write_bytes(torn)
        note = (
            f"the last line of {path.name} was torn (line {len(lines) + 1}, {len(torn)} bytes); "
            f"it was moved to {aside.name} and the run goes on from the line before"
        )
    else:
        note = None
    with path.open("rb+") as file:
        file.truncate(whole_bytes)
        os.fsync(file.fileno())
    return lines, note


def _parse(path: Path) -> tuple[list[Line], int]:
    """Return the whole lines and the number of bytes that they take."""
    if not path.exists():
        return [], 0
    lines: list[Line] = []
    whole = 0
    pieces = path.read_bytes().split(b"\n")
    for number, piece in enumerate(pieces, start=1):
        is_last = number >= len(pieces) - (not pieces[-1])
        line = _read_line(piece)
        if line is not None and number < len(pieces):
            lines.append(line)
            whole += len(piece) + 1
        elif not is_last:
            raise TrialError(
                f"{path}:{number}: not a line of a ledger (got {piece[:60]!r}); only the last "
                f"line of a ledger can be torn by a crash.",
                hint="The file was edited or its disk is damaged. Restore it from a copy, or delete"
                f" line {number} if what it recorded may be lost.",
            )
    return lines, whole


def _read_line(piece: bytes) -> Line | None:
    try:
        line = json.loads(piece)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("kind"), str) else None
