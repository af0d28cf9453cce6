"""Files worth keeping between trials: text splits, tokenizers, tokens, decoded images.

They stand in the user's cache folder under a name made of what they were made from, written whole and
renamed. One worker makes them while the others wait; without a folder that can be written every
worker makes its own in the folder for temporary files.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from planner.errors import ConfigError

__all__ = ["cached", "key_of", "read_facts"]

T = TypeVar("T")


def key_of(*parts: object) -> str:
    """Return the name under which something is kept: of what it was made from."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def cached(key: str, read: Callable[[Path], T], make: Callable[[Path], None]) -> T:
    """Return what is kept under a key, or make it and keep it.

    Args:
        key: Of `key_of`.
        read: Reads it from its folder; raises OSError, ValueError, KeyError or TypeError where the
            folder is not whole.
        make: Writes its files into a folder.

    Raises:
        ConfigError: No folder has room for it.
    """
    found = _read(key, read)
    if found is not None:
        return found
    with _alone(key):
        found = _read(key, read)
        if found is None:
            found = _made(key, read, make)
            _give_memory_back()
    return found


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what stands in the folder's `facts.json`."""
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return facts


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "planner" / "corpora"


def _read(key: str, read: Callable[[Path], T]) -> T | None:
    try:
        return read(_folder() / key)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _alone(key: str) -> Iterator[None]:
    """Wait until no other worker of this machine makes the same thing."""
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        file = (_folder() / f"{key}.lock").open("a")
    except OSError:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _give_memory_back() -> None:
    """Return what was freed to the system: a process keeps it otherwise, and a trial's peak shows it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the GNU C library's own
    if trim is not None:
        trim(0)


def _made(key: str, read: Callable[[Path], T], make: Callable[[Path], None]) -> T:
    try:
        with tempfile.TemporaryDirectory(dir=_folder(), prefix=".writing-") as folder:
            whole = Path(folder, "whole")
            whole.mkdir()
            make(whole)
            shutil.rmtree(_folder() / key, ignore_errors=True)
            whole.rename(_folder() / key)
            return read(_folder() / key)
    except OSError:
        return _made_for_now(read, make)


def _made_for_now(read: Callable[[Path], T], make: Callable[[Path], None]) -> T:
    """Make it where nobody finds it again: mapped files outlive their folder's removal."""
    try:
        with tempfile.TemporaryDirectory(prefix="planner-") as folder:
            make(Path(folder))
            return read(Path(folder))
    except OSError as error:
        raise ConfigError(
            f"data must be kept while they are read: neither {_folder()} nor {tempfile.gettempdir()} "
            f"could be written: {error.strerror}.",
            hint="Free some space, or set XDG_CACHE_HOME to a folder that has some.",
        ) from error
