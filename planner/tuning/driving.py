"""What executors share: the clock of a session, the driver's events, the signals that end it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, Protocol

from planner.errors import PlannerError
from planner.run_folder import RunFolder
from planner.tuning.checkpoints import CheckpointStore
from planner.tuning.core import Launch, Sweep

__all__ = ["HEARTBEAT_SECONDS", "Driver", "Executor", "Interruption", "StudyClock"]

HEARTBEAT_SECONDS: Final = 2.0
"""Longest time between two lines of the ledger while trials run."""
_TIDY_SECONDS: Final = 0.05
"""A look at the checkpoints that takes longer is not repeated at every report."""
_TIDY_REST: Final = 20.0
"""Rest between two looks at the checkpoints, in times of what the last one took."""


class StudyClock:
    """Seconds of a study, without the time between its sessions.

    Args:
        start_seconds: What earlier sessions took.
    """

    def __init__(self, start_seconds: float) -> None:
        self._start = start_seconds
        self._origin = time.monotonic()

    def now(self) -> float:
        """Return the study's seconds."""
        return self._start + time.monotonic() - self._origin


class Interruption:
    """Whether somebody asked the driver to stop, and how."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Catch Ctrl-C and SIGTERM for the time of the block; a second one stops at once.

        Only the main thread can catch signals; elsewhere nothing is caught.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        caught = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in caught}
        for number in caught:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


class Driver:
    """One session of a sweep, as an executor sees it."""

    def __init__(
        self, sweep: Sweep, folder: RunFolder, clock: StudyClock, interruption: Interruption
    ) -> None:
        self.sweep, self.folder, self.clock = sweep, folder, clock
        self.interruption = interruption
        self.checkpoints = CheckpointStore(folder.checkpoints, sweep.study.search.checkpoints)
        self._num_tidied, self._next_tidy = 0, 0.0
        self.lost: PlannerError | None = None
        """Why the session cannot go on, if it cannot."""
        self._beat = clock.now()

    def lose_cluster(self, error: PlannerError) -> None:
        """Hear that what the trials run on is gone: the session ends, and the error is raised."""
        self.lost = error
        self.sweep.interrupt(error.message, self.clock.now())

    def next_launch(self) -> Launch | None:
        """Return a trial to start now, with the checkpoints in place that it goes on from."""
        return self.sweep.next_launch(self.clock.now(), prepare=self.checkpoints.copy)

    def tidy(self, *, at_once: bool = False) -> None:
        """Drop the checkpoints that the policy does not keep, if there may be new ones."""
        count, begun = self.sweep.num_changes, time.monotonic()
        is_early = begun < self._next_tidy and not at_once
        if count == self._num_tidied or is_early or not self.checkpoints.is_limited:
            return
        self._num_tidied = count
        problem = self.checkpoints.tidy(self.sweep)
        if problem is not None:
            self.sweep.note(problem, self.clock.now())
        took = time.monotonic() - begun
        self._next_tidy = begun + _TIDY_REST * took if took > _TIDY_SECONDS else 0.0

    def tick(self) -> bool:
        """Let time pass; return whether the session must end now."""
        now = self.clock.now()
        if self.interruption.signal is not None and not self.sweep.is_stopping:
            self.sweep.interrupt(self.interruption.signal.name, now)
        self.sweep.tick(now)
        self.tidy()
        if now - self._beat >= HEARTBEAT_SECONDS:
            self._beat = now
            self.sweep.heartbeat(now)
        return self.sweep.is_stopping


class Executor(Protocol):
    """Runs what the core decides until nothing is left or the session must end."""

    def num_devices(self, wanted: int, device: str) -> int:
        """Return how many of the wanted devices (`CPU` or `GPU`) there are."""
        ...

    def run(self, driver: Driver) -> None:
        """Carry out the session."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...
