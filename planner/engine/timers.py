"""Where the time of a step goes: waiting for data, for other workers, and in the optimizer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import torch

from planner.engine.torch_internals import around_waits

__all__ = ["CHECKPOINT_THREAD", "PARTS", "Timers"]

CHECKPOINT_THREAD: Final = "checkpoint"
"""Name of the thread that writes checkpoints, whose collectives are no part of training."""
PARTS: Final = ("data_wait", "communication", "optimizer")
"""What is timed apart."""


class Timers:
    """Seconds of each part, counted while `is_running`.

    On a CUDA device, where the host runs ahead, a part is what lies between two events in the
    device's stream: a wait for a collective then takes what computation did not hide. Waiting for
    data is always the host's.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_running = False
        self._on_cuda = device.type == "cuda"
        self._device = device
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge the time of the block to a part."""
        if not self.is_running:
            yield
        elif self._on_cuda and name != "data_wait":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._marks.append((name, first, last))
        else:
            start = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - start

    def waits(self, world_size: int) -> AbstractContextManager[None]:
        """Charge every wait for a collective in the block to communication."""
        if world_size == 1:
            return nullcontext()
        return around_waits(lambda: self.part("communication"), CHECKPOINT_THREAD)

    def settle(self) -> None:
        """Count what was marked; waits for a CUDA device, whose marks would pile up otherwise."""
        if self._marks:
            torch.cuda.synchronize(self._device)
            for name, first, last in self._marks:
                self._seconds[name] += first.elapsed_time(last) / 1e3
            self._marks.clear()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every part so far; waits for a CUDA device."""
        self.settle()
        return dict(self._seconds)

    def go_on_from(self, seconds: dict[str, float]) -> None:
        """Count on from what former attempts took."""
        self._seconds |= seconds
