"""Files worth keeping between trials: text splits, tokenizers, tokens, decoded images.

They stand in the user's cache folder under a name made of what they were made from, written whole and
renamed. One worker makes them while the others wait; without a folder that can be written every
worker makes its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["cached", "key_of", "read_facts"]

T = TypeVar("T")
Content = bytes | npt.NDArray[Any]


def key_of(*parts: object) -> str:
    """Return the name under which something is kept: of what it was made from."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def cached(
    key: str, read: Callable[[Path], T], make: Callable[[], tuple[T, Mapping[str, Content]]]
) -> T:
    """Return what is kept under a key, or make it and keep it.

    Args:
        key: Of `key_of`.
        read: Reads it from its folder; raises OSError, ValueError, KeyError or TypeError where the
            folder is not whole.
        make: Makes it, and the files from which `read` has it again.
    """
    found = _read(key, read)
    if found is not None:
        return found
    with _alone(key):
        found = _read(key, read)
        if found is None:
            found, files = make()
            _write(key, files)
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


def _write(key: str, files: Mapping[str, Content]) -> None:
    target = _folder() / key
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as folder:
            whole = Path(folder) / "whole"
            whole.mkdir()
            for name, content in files.items():
                if isinstance(content, np.ndarray):
                    content.tofile(whole / name)
                else:
                    (whole / name).write_bytes(content)
            whole.rename(target)
    except OSError:
        return
