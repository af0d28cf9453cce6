"""What a worker's device draws and how busy it is: NVML, RAPL, or the catalogue's word for it."""

from __future__ import annotations

import importlib.util
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from planner.costs.devices import known_devices
from planner.costs.energy import watts_per_device

__all__ = ["Power", "PowerMeter", "PowerSampler", "catalogue_name", "rapl_joules"]

_RAPL: Final = Path("/sys/class/powercap")
_SAMPLE_SECONDS: Final = 0.5
_WRAP_SECONDS: Final = 60.0
"""Between looks at a package's counter, which wraps after 262 kJ: ten minutes at 400 W."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Power:
    """What was found; absent is None."""

    watts: float | None = None
    source: str | None = None
    """`nvml`, `rapl` or `modelled`."""
    utilisation: float | None = None
    """Share of the time in which the device was busy."""


def rapl_joules(root: Path) -> list[tuple[float, float]] | None:
    """Return the energy counter of every processor package and where it wraps, in joules.

    None where there are no counters or the process may not read them.
    """
    try:
        return [
            (
                float((zone / "energy_uj").read_text()) / 1e6,
                float((zone / "max_energy_range_uj").read_text()) / 1e6,
            )
            for zone in sorted(root.glob("intel-rapl:[0-9]"))
        ] or None
    except (OSError, ValueError):
        return None


class PackageEnergy:
    """Joules that the processors' packages used since the construction, however often counters wrap.

    Args:
        root: Where the counters are.
        first: What they show now.
    """

    def __init__(self, root: Path, first: list[tuple[float, float]]) -> None:
        self._root, self._last, self._used = root, first, 0.0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._look, name="energy", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(_WRAP_SECONDS):
            self.joules()

    def joules(self) -> float:
        """Return the joules so far."""
        with self._lock:
            now = rapl_joules(self._root) or self._last
            pairs = zip(self._last, now, strict=True)
            self._used += sum((b - a) % top for (a, _), (b, top) in pairs)
            self._last = now
            return self._used

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()


class PowerSampler:
    """Reads watts and utilisation twice a second in a thread of its own, for as long as it is on.

    Args:
        read: Returns watts and utilisation in 0..1.
    """

    def __init__(self, read: Callable[[], tuple[float, float]]) -> None:
        self._read = read
        self._sums = [0.0, 0.0]
        self._number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="power", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while True:
            for index, value in enumerate(self._read()):
                self._sums[index] += value
            self._number += 1
            if self._stop.wait(_SAMPLE_SECONDS):
                return

    def means(self) -> tuple[float, float] | None:
        """Return mean watts and utilisation so far, or None before the first reading."""
        number = self._number
        return (self._sums[0] / number, self._sums[1] / number) if number else None

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()


class PowerMeter:
    """Measures from its construction on.

    Args:
        device: The worker's.
        threads: Its CPU threads, whose share of the processors' power it is charged.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        self._device, self._threads = device, threads
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._energy: PackageEnergy | None = None
        if device.type == "cpu" and (first := rapl_joules(_RAPL)) is not None:
            self._energy = PackageEnergy(_RAPL, first)
        self._sampler: PowerSampler | None = None
        if device.type == "cuda" and importlib.util.find_spec("pynvml") is not None:
            self._sampler = PowerSampler(self._read_nvml)

    def _read_nvml(self) -> tuple[float, float]:
        milliwatts = torch.cuda.power_draw(self._device)
        return milliwatts / 1e3, torch.cuda.utilization(self._device) / 100.0

    def power(self) -> Power:
        """Return what was measured since the construction, or what the catalogue says."""
        if self._device.type == "cuda":
            return self._cuda_power()
        seconds = time.perf_counter() - self._wall
        busy = (time.process_time() - self._cpu) / (seconds * self._threads)
        if self._energy is None:
            return Power(utilisation=min(1.0, busy))
        watts = self._energy.joules() / seconds * self._threads / (os.cpu_count() or 1)
        return Power(watts=watts, source="rapl", utilisation=min(1.0, busy))

    def _cuda_power(self) -> Power:
        means = None if self._sampler is None else self._sampler.means()
        if means is not None:
            return Power(watts=means[0], source="nvml", utilisation=means[1])
        name = catalogue_name(torch.cuda.get_device_name(self._device))
        design: Any = name and known_devices()[name].power_watts
        if design is None:
            return Power()
        return Power(watts=watts_per_device(design, 1.0), source="modelled")

    def close(self) -> None:
        """Stop measuring."""
        for running in (self._sampler, self._energy):
            if running is not None:
                running.close()


def catalogue_name(device_name: str) -> str | None:
    """Return the catalogue's name of a CUDA device, or None for one that it does not know.

    >>> catalogue_name("NVIDIA H200"), catalogue_name("NVIDIA GeForce RTX 3090")
    ('h200-sxm', None)
    """
    words = set(device_name.lower().replace("-", " ").split())
    fitting = [name for name in known_devices() if name != "cpu" and _model_words(name) <= words]
    exact = [name for name in fitting if set(name.split("-")) <= words]
    return next(iter(exact or fitting), None)


def _model_words(name: str) -> set[str]:
    """Return the words of a catalogue's name without form factor and memory, which drivers abbreviate.

    >>> sorted(_model_words("rtx-4090")), sorted(_model_words("a100-sxm-40gb"))
    (['4090', 'rtx'], ['a100'])
    """
    return set(re.split(r"-(?:sxm|pcie)", name)[0].split("-"))
