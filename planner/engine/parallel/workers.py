"""The workers of one trial: who I am, where the others are, and what we agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

from planner.engine.torch_internals import load_what_keeps_groups, meeting_store
from planner.errors import ConfigError

__all__ = ["Meeting", "Workers"]

_TIMEOUT: Final = timedelta(seconds=600)
"""A worker that is silent this long is taken for dead; a killed one is noticed at once."""
_FAILURE_KEY: Final = "planner/first_failure"


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """This worker's rank, device and way to the others."""

    rank: int
    world_size: int
    device: torch.device
    store: Any = None
    """Where a failing worker leaves its reason for the others; None for a single worker."""

    @property
    def is_first(self) -> bool:
        """Whether this worker reports and writes for all."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all workers; a collective call."""
        if self.world_size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Return the largest over all workers, element by element; a collective call."""
        if self.world_size > 1:
            values = values.to(self.device)
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag holds on any worker; a collective call."""
        if self.world_size == 1:
            return flag
        return bool(self.largest(torch.tensor([int(flag)])).item())

    def new_group(self) -> Any:
        """Return a group of all workers over gloo, for talk beside the training's; collective."""
        return dist.new_group(backend="gloo") if self.world_size > 1 else None

    def leave_reason(self, reason: str) -> None:
        """Tell the others why this worker fails, so that they can say it too."""
        if self.store is None:
            return
        with suppress(RuntimeError):  # the worker that kept the notes may be gone
            if not self.store.check([_FAILURE_KEY]):
                self.store.set(_FAILURE_KEY, reason)

    def read_reason(self) -> str | None:
        """Return the reason that a failing worker left, or None."""
        if self.store is None:
            return None
        with suppress(RuntimeError):  # the worker that kept the notes may be gone
            if self.store.check([_FAILURE_KEY]):
                return str(self.store.get(_FAILURE_KEY).decode())
        return None


class Meeting:
    """Where a trial's workers find each other, for one attempt after another.

    Args:
        rank: This worker.
        world_size: All workers.
        init_method: `tcp://HOST:PORT`, `file://PATH` or `env://`; None for a single worker.

    Raises:
        ConfigError: There are several workers and no place to meet.
    """

    def __init__(self, rank: int, world_size: int, init_method: str | None) -> None:
        self._rank, self._world_size = rank, world_size
        self._store: Any = None
        self._num_joined = 0
        if world_size == 1:
            return
        if init_method is None:
            raise ConfigError(
                f"{world_size} workers need a place to meet: init_method is None.",
                hint="Give tcp://HOST:PORT or file://PATH, the same to every worker.",
            )
        self._store = meeting_store(init_method, rank, world_size, _TIMEOUT)

    @contextmanager
    def join(self, *, offloads: bool = False) -> Iterator[Workers]:
        """Join the trial's process group for the time of the block; a collective call.

        Args:
            offloads: Whether gradients lie in the host's memory (`layout.cpu_offload`), where NCCL
                cannot sum them; gloo then does.
        """
        device = _device_of(self._rank)
        if self._world_size == 1:
            yield Workers(rank=0, world_size=1, device=device)
            return
        load_what_keeps_groups()
        backend = "gloo"
        if device.type == "cuda":
            backend = "cpu:gloo,cuda:nccl" if offloads else "nccl"
        store = dist.distributed_c10d.PrefixStore(f"attempt-{self._num_joined}", self._store)
        self._num_joined += 1
        dist.init_process_group(
            backend, store=store, rank=self._rank, world_size=self._world_size, timeout=_TIMEOUT
        )
        try:
            yield Workers(rank=self._rank, world_size=self._world_size, device=device, store=store)
        finally:
            dist.destroy_process_group()


def _device_of(rank: int) -> torch.device:
    """Return the CUDA device of a worker where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count()
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
