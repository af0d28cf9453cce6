"""The cluster: how many of which device, how they are joined, and what they cost."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated, Final

from pydantic import Field

from planner.config import Config, Fraction, Name, PositiveCount, PositiveFloat, parse_config
from planner.costs.devices import CPU, PRECISIONS, Device, DeviceRow, device_named
from planner.errors import ConfigError

__all__ = ["Cluster", "ClusterConfig", "DeviceOverrides", "parse_cluster", "resolve_cluster"]


class DeviceOverrides(Config):
    """Fields of the device that this cluster has otherwise than the catalogue says."""

    fp32: PositiveFloat | None = None
    """Dense peak FLOP/s in fp32; the same for the precisions below."""
    tf32: PositiveFloat | None = None
    fp16: PositiveFloat | None = None
    bf16: PositiveFloat | None = None
    fp8: PositiveFloat | None = None
    fp4: PositiveFloat | None = None
    achievable_fraction: Fraction | None = None
    """Share of the peak that the best large matrix product reaches."""
    memory_bytes: PositiveFloat | None = None
    """Memory of one device."""
    memory_bytes_per_second: PositiveFloat | None = None
    """Memory bandwidth of one device."""
    scale_up_bytes_per_second: PositiveFloat | None = None
    """One direction, per device, inside a node or scale-up domain."""
    scale_out_bytes_per_second: PositiveFloat | None = None
    """One direction, per device, between nodes: a node's network over its devices."""
    devices_per_domain: PositiveCount | None = None
    """Devices that the scale-up links join."""
    power_watts: PositiveFloat | None = None
    """Power limit of one device, without its host; below the catalogue's, clocks fall with its root.
    Of a device whose power the catalogue does not know (CPUs, TPUs), its design power."""


class OwnedHardware(Config):
    """What owned hardware costs per device-hour: its price written off over its useful hours."""

    usd_per_device: PositiveFloat
    """Purchase price of one device with its share of host and network."""
    years: PositiveFloat = 4.0
    """Time over which it is written off."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of that time in use."""
    usd_per_kwh: Annotated[float, Field(ge=0)] = 0.0
    """Price of electricity, charged at full load times the PUE."""


class ClusterConfig(Config):
    """What people say about their cluster; everything but the device has a default."""

    device: Name = CPU
    """Name in the catalogue (`planner doctor --devices` lists it), or `cpu`: one core is one device."""
    num_nodes: PositiveCount = 1
    """Machines."""
    devices_per_node: PositiveCount | None = None
    """Devices of each machine; by default the catalogue's, and on `cpu` the usable cores."""
    usd_per_device_hour: PositiveFloat | None = None
    """Price of a device-hour; without one no money is shown."""
    price_date: Name | None = None
    """When that price held, such as `2026-08`."""
    price_kind: Name | None = None
    """`spot`, `on-demand`, `reserved` or any other word that the report should repeat."""
    owned: OwnedHardware | None = None
    """Owned hardware, instead of a price per hour."""
    device_overrides: DeviceOverrides = DeviceOverrides()
    """What this cluster's devices have otherwise than the catalogue says."""
    grid_gco2_per_kwh: PositiveFloat = 480.0
    """Grams of CO2 per kWh of the grid; by default the world's mean of 2023 (Ember, Global Electricity
    Review 2024). Regions lie between 2.7 and 713: give your own."""
    pue: Annotated[float, Field(ge=1, le=3)] = 1.1
    """Facility power over machine power."""
    goodput: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the time that trains; by default 1 on one node, 0.95 on several, 0.9 beyond 32."""
    memory_margin_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.06
    """Share of the device's memory kept free for fragmentation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """A resolved cluster. Build it with `resolve_cluster`."""

    device: Device
    num_nodes: int
    devices_per_node: int
    usd_per_device_hour: float | None
    price_date: str | None
    price_kind: str | None
    grid_gco2_per_kwh: float
    pue: float
    goodput: float
    memory_margin_fraction: float

    @property
    def num_devices(self) -> int:
        """Devices of all nodes."""
        return self.num_nodes * self.devices_per_node

    @property
    def devices_per_domain(self) -> int:
        """Devices that fast links join: the node, or a larger scale-up domain."""
        if self.device.is_cpu or self.device.devices_per_domain <= self.device.devices_per_node:
            return self.devices_per_node
        return min(self.num_devices, self.device.devices_per_domain)

    @property
    def usable_memory_bytes(self) -> float:
        """Memory of one device that a plan may fill: the device's, less the margin."""
        return self.device.memory_bytes * (1.0 - self.memory_margin_fraction)

    def __str__(self) -> str:
        """Return the form that `parse_cluster` reads, nodes first where they are not the catalogue's."""
        usual = min(self.num_devices, self.device.devices_per_node)
        nodes = "" if self.devices_per_node == usual else f"{self.num_nodes}x"
        each = self.devices_per_node if nodes else self.num_devices
        return f"{nodes}{each}x{self.device.name}"


def _overridden(device: Device, overrides: DeviceOverrides) -> Device:
    given = {k: v for k, v in overrides.model_dump().items() if v is not None}
    peaks = {k: given.pop(k) for k in PRECISIONS if k in given}
    limit, design = given.get("power_watts"), device.power_watts
    capped = limit / design if limit and design else 1.0
    if capped < 1.0 and "achievable_fraction" not in given:
        given["achievable_fraction"] = device.achievable_fraction * capped**0.5
    changed = replace(device, peaks=device.peaks | peaks, **given)
    if not device.is_cpu:
        row = {n: getattr(changed, n) for n in DeviceRow.model_fields if hasattr(changed, n)}
        try:
            parse_config(row | changed.peaks, DeviceRow, "cluster.device_overrides")
        except ConfigError as error:
            raise ConfigError(
                f"overrides must be what hardware can have. {error.message}",
                hint="Rates are FLOP/s and bytes per second, memory is bytes, power is watts.",
            ) from error
    return changed


def _goodput(config: ClusterConfig) -> float:
    if config.goodput is not None:
        return config.goodput
    if config.num_nodes == 1:
        return 1.0
    return 0.95 if config.num_nodes <= 32 else 0.9


def owned_usd_per_device_hour(owned: OwnedHardware, power_watts: float, pue: float) -> float:
    """Return what an hour of owned hardware costs.

    usd_per_device / (years * 8766 h * utilisation) + 1.25 * power_watts / 1000 * pue * usd_per_kwh

    >>> round(owned_usd_per_device_hour(OwnedHardware(usd_per_device=35000.0), 700.0, 1.1), 3)
    1.426
    """
    hours = owned.years * 8766.0 * owned.utilisation
    return owned.usd_per_device / hours + 1.25 * power_watts / 1e3 * pue * owned.usd_per_kwh


def resolve_cluster(config: ClusterConfig) -> Cluster:
    """Return the cluster that a configuration describes.

    Raises:
        ConfigError: The device is unknown, or an override is outside of what hardware can have.
    """
    device = _overridden(device_named(config.device), config.device_overrides)
    usd = config.usd_per_device_hour or device.usd_per_device_hour
    is_own_price = config.owned is not None or config.usd_per_device_hour is not None
    date = config.price_date if is_own_price else device.price_date
    if config.owned is not None:
        usd = owned_usd_per_device_hour(config.owned, device.power_watts or 0.0, config.pue)
    return Cluster(
        device=device,
        num_nodes=config.num_nodes,
        devices_per_node=config.devices_per_node or device.devices_per_node,
        usd_per_device_hour=usd,
        price_date=date,
        price_kind="owned" if config.owned else config.price_kind,
        grid_gco2_per_kwh=config.grid_gco2_per_kwh,
        pue=config.pue,
        goodput=_goodput(config),
        memory_margin_fraction=config.memory_margin_fraction,
    )


_PATTERN: Final = re.compile(r"(?:(?P<nodes>\d+)x)?(?P<devices>\d+)x(?P<device>[a-z0-9.-]+)")


def parse_cluster(text: str) -> ClusterConfig:
    """Return the cluster that a person wrote as `64xh100-sxm` or, nodes first, `8x8xh100-sxm`.

    Raises:
        ConfigError: The text has another form, the device is unknown, or nodes are not full.

    >>> parse_cluster("64xh100-sxm").num_nodes
    8
    """
    match = _PATTERN.fullmatch(text.strip().lower())
    if not match or not int(match["devices"]) or (match["nodes"] and not int(match["nodes"])):
        if re.fullmatch(r"[a-z][a-z0-9.-]*", text.strip().lower()):
            return ClusterConfig(device=device_named(text.strip().lower()).name)
        raise ConfigError(
            f"a cluster is COUNTxDEVICE with a count of at least 1: got {text!r}.",
            hint="Write e.g. 64xh100-sxm, or 16x4xa100-sxm for 16 nodes of 4.",
        )
    device, devices = device_named(match["device"]), int(match["devices"])
    if match["nodes"]:
        return ClusterConfig(
            device=device.name, num_nodes=int(match["nodes"]), devices_per_node=devices
        )
    per_node = min(devices, device.devices_per_node)
    if devices % per_node:
        raise ConfigError(
            f"nodes must be full: {devices} devices on nodes of {per_node} ({device.name}).",
            hint=f"Use a multiple of {per_node}, or write NODESxDEVICESx{device.name}.",
        )
    return ClusterConfig(
        device=device.name, num_nodes=devices // per_node, devices_per_node=per_node
    )
