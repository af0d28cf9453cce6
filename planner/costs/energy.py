"""Energy and carbon of devices under load."""

from __future__ import annotations

from typing import Final

from planner.units import SECONDS_PER_HOUR

__all__ = ["kwh_of", "watts_per_device"]

_FULL_LOAD: Final = 1.25
"""All-in power at full load over the design power: 1.22-1.29 at the AC meter and 1.20-1.25 at the DC
meter of 8 x H100 nodes (MLPerf Training v4.0 power logs)."""
_IDLE: Final = 0.35
"""All-in power while waiting, over the design power (recalled; communication-bound runs of the same
logs draw 0.91-1.14)."""


def watts_per_device(power_watts: float, busy_fraction: float) -> float:
    """Return the power that one device draws at the meter with its share of the host.

    W_idle + (W_full - W_idle) * busy, with W_full = 1.25 TDP and W_idle = 0.35 TDP.

    >>> watts_per_device(700.0, 1.0)
    875.0
    """
    return power_watts * (_IDLE + (_FULL_LOAD - _IDLE) * busy_fraction)


def kwh_of(watts: float, num_devices: int, seconds: float, pue: float) -> float:
    """Return the energy of devices that each draw so many watts, with the facility's share.

    >>> round(kwh_of(875.0, 8, 3600.0, 1.1), 6)
    7.7
    """
    return watts * num_devices * seconds * pue / 1e3 / SECONDS_PER_HOUR
