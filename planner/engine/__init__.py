"""The training engine: one process is one worker, and nothing here knows who started it.

    train(config)                       this process alone
    train(config, rank=r, world_size=n, init_method=...)   as one worker of several
    train_local(config)                 this process and the workers that it starts beside it
    python -m planner.engine CONFIG.json                   the same from a shell, or under torchrun

Importing this package does not load torch: what a worker's environment must hold before torch is
loaded (`worker_environment`) is decided here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.lazy import lazy_names

if TYPE_CHECKING:
    from planner.engine.data.corpus import corpus_entropy as corpus_entropy
    from planner.engine.environment import worker_environment as worker_environment
    from planner.engine.launch import train_local as train_local
    from planner.engine.training import train as train

_HOMES = {
    "corpus_entropy": "planner.engine.data.corpus",
    "train": "planner.engine.training",
    "train_local": "planner.engine.launch",
    "worker_environment": "planner.engine.environment",
}
"""Public name -> the module that defines it."""

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
