"""Reads the next batch while a step is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from planner.engine.data.windows import Batch

__all__ = ["Place", "Prefetcher"]

Place = tuple[int, int]
"""Global index of a batch's first sample, and its number of samples."""


class Prefetcher:
    """Keeps one batch ahead of the one in use, read by a thread.

    A batch is a function of its place, so what is read ahead and not asked for (the batch grew, or
    the trial ended) is dropped, and order and resumption are those of reading at once.

    Args:
        read: Returns the batch of a place.
    """

    def __init__(self, read: Callable[[int, int], Batch]) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: tuple[Place, Future[Batch]] | None = None

    def get(self, place: Place, following: Place | None) -> Batch:
        """Return a batch, and begin to read the one that will be asked for next."""
        ahead, self._ahead = self._ahead, None
        foreseen = ahead[1] if ahead is not None and ahead[0] == place else None
        batch = self._read(*place) if foreseen is None else foreseen.result()
        if following is not None:
            self._ahead = following, self._thread.submit(self._read, *following)
        return batch

    def close(self) -> None:
        """End the thread; what it still reads is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)
