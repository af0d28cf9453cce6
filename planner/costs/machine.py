"""What this machine has: found by looking, measured where looking does not tell."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from planner.costs.devices import num_usable_cores

__all__ = ["Machine", "examine_machine", "measure_core_flops_per_second"]

_PACKAGES: Final = ("torch", "ray", "optuna")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A machine as `planner doctor` shows it."""

    system: str
    python: str
    version: str
    processor: str
    num_cores: int
    memory_bytes: float
    free_memory_bytes: float
    core_flops_per_second: float
    """Measured: a product of 512 x 512 matrices in fp32, per CPU second."""
    accelerators: tuple[str, ...]
    packages: dict[str, str]
    problems: tuple[str, ...]


def measure_core_flops_per_second(seconds: float = 0.3) -> float:
    """Return the FLOP/s that one core reaches in fp32 matrix products, by CPU time."""
    matrix = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    matrix @ matrix
    start, products = time.process_time(), 0
    while time.process_time() - start < seconds:
        matrix @ matrix
        products += 1
    return 2.0 * 512.0**3 * products / (time.process_time() - start)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def _accelerators() -> tuple[str, ...]:
    """Return the names of NVIDIA devices that the driver's tool lists."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    asked = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _problems(packages: dict[str, str], free: float, total: float) -> tuple[str, ...]:
    found = [
        f"{name} is not installed: trials cannot run here. Install planner[train]"
        for name, state in packages.items()
        if state == "not installed"
    ]
    if free < 0.1 * total:
        found.append("less than a tenth of the memory is free: trials may run out of it")
    return tuple(found)


def examine_machine() -> Machine:
    """Return what this machine has; takes about half a second."""
    memory = psutil.virtual_memory()
    packages = {name: _installed(name) for name in _PACKAGES}
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        version=_installed("planner"),
        processor=_processor(),
        num_cores=num_usable_cores(),
        memory_bytes=float(memory.total),
        free_memory_bytes=float(memory.available),
        core_flops_per_second=measure_core_flops_per_second(),
        accelerators=_accelerators(),
        packages=packages,
        problems=_problems(packages, float(memory.available), float(memory.total)),
    )
