"""TensorBoard events, for those who want to watch a trial there."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.errors import ConfigError

__all__ = ["Events", "check_tensorboard"]


def check_tensorboard(folder: Path | None) -> None:
    """Refuse to write events without the package that writes them, or without a place for them.

    Raises:
        ConfigError: One is missing.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "execution.tensorboard needs the package tensorboard, which is not installed.",
            hint="Install it with pip install 'planner[tensorboard]', or set "
            "execution.tensorboard=false.",
        )
    if folder is None:
        raise ConfigError(
            "execution.tensorboard needs a folder for its events, and the trial has none.",
            hint="Give --out DIR (in Python: checkpoint_dir).",
        )


class Events:
    """Writes the numbers of every report below `folder/tensorboard`.

    Args:
        folder: The trial's.
        first_step: The step from which a resumed trial goes on; later events are dropped.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        make: Any = SummaryWriter
        self._writer = make(str(folder / "tensorboard"), purge_step=first_step or None)

    def write(self, report: Mapping[str, Any]) -> None:
        """Write every number of a report under its name."""
        for name, value in report.items():
            if isinstance(value, int | float) and name != "num_steps":
                self._writer.add_scalar(name, value, report["num_steps"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
