"""What a worker's environment must hold before torch is loaded. This module does not load torch.

OpenMP reads its settings once, when it starts. With more threads than free cores, waiting threads
that spin slow a machine down by tens of times, so threads are few and wait passively.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.errors import ConfigError

if TYPE_CHECKING:
    from planner.trial import TrialConfig

__all__ = ["Place", "torchrun_place", "worker_environment"]


def worker_environment(config: TrialConfig, *, cuda_devices: str | None = None) -> dict[str, str]:
    """Return the variables to set in a worker's environment before torch is loaded.

    Args:
        config: The trial; `execution.threads_per_worker` sets the threads.
        cuda_devices: Value for `CUDA_VISIBLE_DEVICES`; None leaves the variable alone, the empty
            text hides every device.
    """
    threads = str(config.execution.threads_per_worker)
    environment = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        "RAYON_NUM_THREADS": threads,  # of the tokenizers
    }
    if cuda_devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = cuda_devices
    return environment


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a worker stands among its trial's workers."""

    rank: int = 0
    world_size: int = 1
    init_method: str | None = None
    """Where the workers meet: `tcp://HOST:PORT` or `file://PATH`; None when there is one."""


def torchrun_place(environment: Mapping[str, str]) -> Place:
    """Return the place that torchrun wrote into the environment; alone if it wrote none.

    Raises:
        ConfigError: The variables are there in part.

    >>> torchrun_place({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "29"})
    Place(rank=1, world_size=2, init_method='env://')
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    given = [name for name in names if environment.get(name)]
    if "RANK" not in given and "WORLD_SIZE" not in given:
        return Place()
    if len(given) < len(names):
        missing = ", ".join(name for name in names if name not in given)
        raise ConfigError(
            f"a worker needs all of {', '.join(names)}: {missing} missing.",
            hint="Start the workers with torchrun, or unset RANK and WORLD_SIZE.",
        )
    return Place(
        rank=int(environment["RANK"]),
        world_size=int(environment["WORLD_SIZE"]),
        init_method="env://",
    )
