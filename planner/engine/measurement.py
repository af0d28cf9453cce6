"""What a trial costs: seconds, tokens per second, FLOPs, MFU and memory, as measured."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from planner.costs.devices import device_named, known_devices
from planner.costs.params import count_params
from planner.costs.workload import optimizer_moment_bytes
from planner.engine.power import catalogue_name
from planner.trial import TrialConfig
from planner.units import format_bytes

__all__ = [
    "Clock",
    "check_host_memory",
    "least_state_bytes",
    "peak_flops_per_second",
    "peak_memory_bytes",
    "reset_peak_memory",
]


@dataclass(slots=True)
class Clock:
    """Seconds spent, over all attempts of a trial."""

    device: torch.device
    train_seconds: float = 0.0
    """In steps and validations."""
    step_seconds: float = 0.0
    """In steps alone."""
    step_tokens: int = 0
    """Tokens of those steps."""
    compile_seconds: float = 0.0
    """In first steps that compile."""
    elapsed_before: float = 0.0
    """Of former attempts, up to the checkpoint that was resumed."""
    _started: float = field(default_factory=time.monotonic)
    _last_lap: float = field(default_factory=time.perf_counter)

    @property
    def elapsed_seconds(self) -> float:
        """Since the trial was started."""
        return self.elapsed_before + time.monotonic() - self._started

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second of training steps, or None before the first."""
        return self.step_tokens / self.step_seconds if self.step_seconds else None

    def lap_steps(self, tokens: int) -> None:
        """Charge the time since the last lap to training steps of that many tokens."""
        seconds = self._lap()
        self.step_seconds += seconds
        self.train_seconds += seconds
        self.step_tokens += tokens

    def lap_validation(self) -> None:
        """Charge the time since the last lap to validation."""
        self.train_seconds += self._lap()

    def lap_compilation(self) -> None:
        """Charge the time since the last lap to compilation: a first step that compiles."""
        self.compile_seconds += self._lap()

    def skip(self) -> None:
        """Charge the time since the last lap to nothing: checkpoints, reports, start-up."""
        self._lap()

    def _lap(self) -> float:
        self._synchronize()
        now = time.perf_counter()
        seconds, self._last_lap = now - self._last_lap, now
        return seconds

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def peak_flops_per_second(config: TrialConfig, device: torch.device) -> float | None:
    """Return the peak of one worker at the trial's precision, or None where it is not known.

    A worker on the CPU has `threads_per_worker` cores. A CUDA device is looked up in the catalogue
    by the words of its name.
    """
    precision = config.precision.compute
    if device.type == "cpu":
        core = device_named("cpu").peaks.get(precision)
        return core and core * config.execution.threads_per_worker
    name = catalogue_name(torch.cuda.get_device_name(device))
    return None if name is None else known_devices()[name].peaks.get(precision)


def least_state_bytes(config: TrialConfig) -> float:
    """Return the least that parameters, gradients and moments take on a worker.

    (8 + m) N on one worker, all in fp32, with m bytes of moments; see
    `planner.costs.memory.memory_use` for the rest.
    """
    layout, count = config.layout, count_params(config.model)
    whole = count.total - count.experts + count.experts / layout.expert_parallel
    held = whole / (layout.tensor_parallel * layout.pipeline_parallel)
    moments = optimizer_moment_bytes(config.optimizer.name)
    if layout.zero_stage == 1:
        return (8.0 + moments / layout.shard_parallel) * held
    return (8.0 + moments) * held / layout.shard_parallel


def check_host_memory(needed_bytes: float, device: torch.device) -> None:
    """Refuse to fill more memory than the host has left: the system would kill the process.

    Raises:
        MemoryError: The worker's states alone are larger than the free memory.
    """
    if device.type != "cpu":
        return
    free_bytes = psutil.virtual_memory().available
    if needed_bytes > free_bytes:
        raise MemoryError(
            f"the states of the model need {format_bytes(needed_bytes)} on this worker, "
            f"{format_bytes(free_bytes)} are free"
        )


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring the peak of memory anew, where the system lets a process do so."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_bytes(device: torch.device) -> float:
    """Return the largest allocated (CUDA) or resident (CPU) memory since the last reset."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024.0
    except (OSError, StopIteration):
        unit = 1.0 if sys.platform == "darwin" else 1024.0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
