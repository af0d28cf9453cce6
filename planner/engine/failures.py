"""What went wrong, told from the exception that torch raised."""

from __future__ import annotations

from typing import Final

import torch
import torch.distributed as dist

from planner.trial import TrialState

__all__ = ["classify"]

_OUT_OF_MEMORY: Final = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "status_alloc_failed",
)  # fmt: skip
"""The last one is what cuBLAS and cuDNN say that find no room for their workspace."""
_COMMUNICATION: Final = (
    "gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "timed out",
    "socket", "connection refused", "connection was",
)  # fmt: skip


def classify(error: Exception) -> tuple[TrialState, str] | None:
    """Return the state in which an error leaves a trial and why; None for an error of our own.

    Memory that ran out is an observation about the configuration; a lost worker is not.
    """
    text = str(error).lower()
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
    ):
        return TrialState.OUT_OF_MEMORY, f"out of memory: {first_line}"
    if isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError | ConnectionError)
        and any(words in text for words in _COMMUNICATION)
    ):
        return TrialState.FAILED, f"communication between workers failed: {first_line}"
    return None
