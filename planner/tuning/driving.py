"""What executors share: the clock of a session, the driver's events, the signals that end it."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol

from planner.run_folder import RunFolder
from planner.tuning.core import Launch, Sweep

__all__ = ["HEARTBEAT_SECONDS", "Driver", "Executor", "Interruption", "StudyClock"]

HEARTBEAT_SECONDS: Final = 2.0
"""Longest time between two lines of the ledger while trials run."""


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
        self._beat = clock.now()

    def checkpoint_dir(self, trial: str) -> Path:
        """Return where a trial's checkpoints are."""
        return self.folder.checkpoints / trial

    def next_launch(self) -> Launch | None:
        """Return a trial to start now, with the checkpoints in place that it goes on from."""
        return self.sweep.next_launch(self.clock.now(), prepare=self._copy_checkpoint)

    def _copy_checkpoint(self, trial: str, donor: str) -> None:
        """Give a trial the newest checkpoint of another in the place of its own."""
        steps = sorted(self.checkpoint_dir(donor).glob("step-*/state.json"))
        if not steps:
            return
        newest, target = steps[-1].parent, self.checkpoint_dir(trial)
        copied = target.with_name(f".{trial}.copied")
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(newest, copied / newest.name)
        shutil.rmtree(target, ignore_errors=True)
        copied.rename(target)

    def tick(self) -> bool:
        """Let time pass; return whether the session must end now."""
        now = self.clock.now()
        if self.interruption.signal is not None and not self.sweep.is_stopping:
            self.sweep.interrupt(self.interruption.signal.name, now)
        self.sweep.tick(now)
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


def checkpoint_report(folder: Path) -> dict[str, Any]:
    """Return the last report that the newest checkpoint of a trial holds; empty without one."""
    states = sorted(folder.glob("step-*/state.json"))
    if not states:
        return {}
    try:
        report = json.loads(states[-1].read_text(encoding="utf-8")).get("report")
    except (OSError, ValueError):
        return {}
    return dict(report) if isinstance(report, dict) else {}
