"""One driver per run: a lock on a file of the run folder, held by the process and freed by its end.

The kernel frees the lock when the process dies, however it dies, so a lock is never stale; the
process id in the file only serves the message.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from planner.errors import ConfigError

__all__ = ["is_locked", "locked"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for the time of the block.

    Raises:
        ConfigError: Another process holds it, or the folder cannot be written.
    """
    path = folder / "lock"
    try:
        file = path.open("a+")
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}.",
            hint="Choose a folder that can be written: --runs DIR, or PLANNER_RUNS.",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ConfigError(
                f"run {folder.name!r} is being driven by {holder}.",
                hint=f"Watch it with: planner status {folder.name}",
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
        file.truncate(0)


def is_locked(folder: Path) -> bool:
    """Return whether a living process holds a run folder."""
    path = folder / "lock"
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
