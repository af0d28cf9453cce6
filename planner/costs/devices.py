"""The hardware catalogue: what a device can do, read from `devices.yaml`.

A row states its source, its date and how far it can be trusted. Sparse peaks never enter. Values
outside of what hardware can have are refused, so that a slip of units is an error and not a plan.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Literal

import psutil
from pydantic import Field

from planner.config import Config, Fraction, Name, PositiveCount, load_config
from planner.errors import ConfigError, did_you_mean

__all__ = [
    "CPU",
    "Device",
    "DeviceRow",
    "cpu_device",
    "device_named",
    "known_devices",
    "num_usable_cores",
]

CPU: Final = "cpu"
PRECISIONS: Final = ("fp32", "tf32", "fp16", "bf16", "fp8", "fp4")

Rate = Annotated[float, Field(ge=1e9, le=1e17)]
"""FLOP/s of one device: from a slow core to a hundred petaFLOP/s."""
Memory = Annotated[float, Field(ge=1e8, le=4e12)]
"""Bytes of one device; 4 TB is past every accelerator and below a mistaken 'unlimited'."""
Bandwidth = Annotated[float, Field(ge=1e8, le=1e14)]
"""Bytes per second."""


class DeviceRow(Config):
    """One row of the catalogue, in base units; dense peaks only."""

    fp32: Rate | None = None
    """Peak FLOP/s of fp32 outside of tensor cores."""
    tf32: Rate | None = None
    fp16: Rate | None = None
    bf16: Rate | None = None
    fp8: Rate | None = None
    fp4: Rate | None = None
    achievable_fraction: Fraction
    """Share of the peak that the best large matrix product reaches (MAMF)."""
    memory_bytes: Memory
    """What a program can address, before its own context."""
    memory_bytes_per_second: Bandwidth
    scale_up_bytes_per_second: Bandwidth
    """One direction, per device, inside the scale-up domain."""
    scale_out_bytes_per_second: Bandwidth
    """One direction, per device, between nodes; typical, a cluster may say otherwise."""
    devices_per_node: PositiveCount = 8
    devices_per_domain: PositiveCount = 8
    """Devices that the scale-up links join."""
    power_watts: Annotated[float, Field(ge=1, le=3000)] | None = None
    """Thermal design power of the device alone."""
    usd_per_device_hour: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Price, only where one is stated with its date."""
    price_date: Name | None = None
    confidence: Literal["datasheet", "measured", "recalled"]
    source: Name
    date: Name
    """When the row was read from its source."""
    note: str = ""


class _Catalogue(Config):
    devices: dict[str, DeviceRow]


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What one device can do; rates in FLOP/s and bytes/s, memory in bytes, power in watts."""

    name: str
    peaks: dict[str, float]
    """Dense peak FLOP/s by precision; an absent precision is one that the device lacks."""
    achievable_fraction: float
    memory_bytes: float
    memory_bytes_per_second: float
    scale_up_bytes_per_second: float
    scale_out_bytes_per_second: float
    devices_per_node: int
    devices_per_domain: int
    power_watts: float | None
    usd_per_device_hour: float | None
    price_date: str | None
    confidence: str
    source: str
    date: str
    note: str = ""

    @property
    def is_cpu(self) -> bool:
        """Whether the device is a core of a CPU."""
        return self.name == CPU

    @property
    def is_tpu(self) -> bool:
        """Whether the device is a TPU chip."""
        return self.name.startswith("tpu")

    def peak_flops_per_second(self, precision: str) -> float:
        """Return the dense peak at a precision.

        Raises:
            ConfigError: The device lacks the precision.

        >>> device_named("a100-sxm").peak_flops_per_second("bf16")
        312000000000000.0
        """
        if precision not in self.peaks:
            have = ", ".join(self.peaks)
            raise ConfigError(
                f"the device must have the precision: {self.name} has no {precision}. It has {have}.",
                hint="Set precision.compute to one of them, or choose another device.",
            )
        return self.peaks[precision]


def _device(name: str, row: DeviceRow) -> Device:
    peaks = {p: getattr(row, p) for p in PRECISIONS if getattr(row, p) is not None}
    names = {f.name for f in fields(Device)} & set(DeviceRow.model_fields)
    return Device(name=name, peaks=peaks, **{n: getattr(row, n) for n in names})


@cache
def _catalogue() -> dict[str, Device]:
    rows = load_config(Path(__file__).with_name("devices.yaml"), _Catalogue).devices
    return {name: _device(name, row) for name, row in rows.items()}


def known_devices() -> dict[str, Device]:
    """Return the catalogue by name: the CPU of this machine, then the accelerators."""
    return {CPU: cpu_device(), **_catalogue()}


def device_named(name: str) -> Device:
    """Return a device of the catalogue.

    Raises:
        ConfigError: Nothing has that name; the message lists what is known.
    """
    if name == CPU:
        return cpu_device()
    catalogue = _catalogue()
    if name not in catalogue:
        known = [CPU, *catalogue]
        close = did_you_mean(name, known)
        raise ConfigError(
            f"no device named {name!r}. {close if close.startswith('Did') else ''}".rstrip()
            + f" Known: {', '.join(sorted(known))}.",
            hint="Another device is described in the study: cluster.device_overrides with fp32/bf16 "
            "(FLOP/s), memory_bytes and the bandwidths, on top of the nearest known device.",
        )
    return catalogue[name]


def num_usable_cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_CORE_FLOPS_PER_SECOND: Final = 1.5e11
"""Peak of one recent x86 server core in fp32: 2 FMA units x 16 lanes x 2 FLOPs at about 2.3 GHz."""
_CORE_ACHIEVABLE: Final = 0.45
"""What a small transformer's training step reaches of it: 11-14 thousand tokens per CPU second at
0.85 M parameters and context 64, 5.1 MFLOPs each (benchmarks/engine.py prints the like)."""


@cache
def cpu_device() -> Device:
    """Return one core of this machine as a device; its memory is its share of the machine's.

    The peak is a default for recent x86 server cores; `planner doctor` measures the real one.
    """
    memory = float(psutil.virtual_memory().total)
    return Device(
        name=CPU,
        peaks={
            "fp32": _CORE_FLOPS_PER_SECOND,
            "bf16": 1.5 * _CORE_FLOPS_PER_SECOND,
            "fp16": 0.5 * _CORE_FLOPS_PER_SECOND,
        },
        achievable_fraction=_CORE_ACHIEVABLE,
        memory_bytes=memory / num_usable_cores(),
        memory_bytes_per_second=2e10,
        scale_up_bytes_per_second=2e9,
        scale_out_bytes_per_second=1e8,
        devices_per_node=num_usable_cores(),
        devices_per_domain=num_usable_cores(),
        power_watts=None,
        usd_per_device_hour=None,
        price_date=None,
        confidence="recalled",
        source=f"default for one core; this machine is {platform.machine()}",
        date="2026-08",
    )
