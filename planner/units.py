"""Quantities as people write and read them; base units everywhere else.

Parsing (`"20 gpuh"`, `"$40"`, `"1e19 flops"`) and formatting (`1.2e19 FLOPs`, `38.1 GiB`) live
here and nowhere else, and are called only where a person types or reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from planner.errors import ConfigError

__all__ = [
    "SECONDS_PER_HOUR",
    "format_bytes",
    "format_count",
    "format_flops",
    "format_kwh",
    "format_number",
    "format_rate",
    "format_seconds",
    "format_usd",
    "parse_budget",
    "parse_count",
    "parse_seconds",
]

SECONDS_PER_HOUR: Final = 3600.0
_SECONDS_PER_DAY: Final = 86400.0

_PREFIX: Final = {
    "": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21,
    "y": 1e24,
}  # fmt: skip
"""SI prefixes, lower case; `b` is the billion of parameter counts."""

_NUMBER: Final = r"([0-9][0-9,_]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+)"

_BUDGET_UNITS: Final[Mapping[str, tuple[str, float]]] = {
    **dict.fromkeys(("device_hours", "device-hours", "device-hour", "devicehours", "gpuh", "gpu-h", "gpu-hours", "gpu-hour", "gpuhours", "gpu_hours"), ("device_hours", 1.0)),
    **dict.fromkeys(("device-days", "device-day", "gpu-days", "gpu-day"), ("device_hours", 24.0)),
    **dict.fromkeys(("usd", "dollars", "$"), ("usd", 1.0)),
    **dict.fromkeys(("flops", "flop"), ("flops", 1.0)),
    **dict.fromkeys(("pflop/s-days", "pflops-days", "pf-days"), ("flops", 1000000000000000.0 * _SECONDS_PER_DAY)),
    **dict.fromkeys(("kwh",), ("kwh", 1.0)),
    **dict.fromkeys(("s", "sec", "seconds", "second"), ("seconds", 1.0)),
    **dict.fromkeys(("min", "minutes", "minute"), ("seconds", 60.0)),
    **dict.fromkeys(("h", "hours", "hour"), ("seconds", 3600.0)),
    **dict.fromkeys(("d", "days", "day"), ("seconds", _SECONDS_PER_DAY)),
}  # fmt: skip

_DURATION_UNITS: Final = {
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0,
    "minutes": 60.0, "h": 3600.0, "hour": 3600.0, "hours": 3600.0, "d": _SECONDS_PER_DAY,
    "day": _SECONDS_PER_DAY, "days": _SECONDS_PER_DAY, "w": 7 * _SECONDS_PER_DAY,
    "week": 7 * _SECONDS_PER_DAY, "weeks": 7 * _SECONDS_PER_DAY,
}  # fmt: skip


def _number(text: str) -> float:
    value = float(text.replace(",", "").replace("_", ""))
    if value == math.inf:
        raise ConfigError(f"a number must be below 1.8e308 (got {text}).")
    return value


def parse_budget(text: str) -> dict[str, float]:
    """Return `{field of Budget: amount}` for one or several amounts with units, joined by commas.

    Fields are `flops`, `device_hours`, `usd`, `seconds` (wall clock) and `kwh`.

    Raises:
        ConfigError: An amount has no unit, an unknown unit, or the same field is given twice.

    >>> parse_budget("20 gpuh, 40usd")
    {'device_hours': 20.0, 'usd': 40.0}
    >>> parse_budget("10 PFLOP/s-days")
    {'flops': 8.64e+20}
    >>> parse_budget("300 EFLOP")
    {'flops': 3e+20}
    """
    amounts: dict[str, float] = {}
    for part in re.split(r",(?![0-9]{3}(?:\D|$))", text.strip()):
        field, amount = _parse_amount(part.strip())
        if field in amounts:
            raise ConfigError(f"a budget names each unit once: {text!r} gives {field} twice.")
        amounts[field] = amount
    return amounts


def _parse_amount(text: str) -> tuple[str, float]:
    match = re.fullmatch(rf"\$?\s*{_NUMBER}\s*(.*)", text)
    if not match:
        raise ConfigError(
            f"a budget is a number with a unit: got {text!r}.",
            hint="Write e.g. '20 device-hours', '1e19 flops', '40 usd', '6 h' or '5 kwh'.",
        )
    value, unit = _number(match[1]), match[2].strip().lower()
    if text.startswith("$"):
        unit = f"{unit}usd"
    if not unit:
        raise ConfigError(
            f"budget {text!r} has no unit.", hint=f"Write e.g. '{text} flops' or '{text} usd'."
        )
    if unit in _BUDGET_UNITS:
        field, factor = _BUDGET_UNITS[unit]
        return field, value * factor
    if unit[0] in _PREFIX and (rest := unit[1:].lstrip()) in _BUDGET_UNITS:
        field, factor = _BUDGET_UNITS[rest]
        if field in ("flops", "device_hours", "usd"):
            return field, value * factor * _PREFIX[unit[0]]
    raise ConfigError(
        f"unknown unit {match[2].strip()!r} in budget {text!r}.",
        hint="Units: flops (k M G T P E Z), device-hours, gpu-days, usd, kwh, s, min, h, d.",
    )


def parse_seconds(text: str) -> float:
    """Return the seconds of a duration whose every part has a unit.

    Raises:
        ConfigError: A part has no unit or an unknown one.

    >>> parse_seconds("1d12h")
    129600.0
    >>> parse_seconds("90 min")
    5400.0
    """
    parts = re.findall(rf"{_NUMBER}\s*([a-zA-Z]+)", text)
    joined = re.sub(r"\s", "", "".join(number + unit for number, unit in parts))
    if not parts or joined != re.sub(r"\s", "", text):
        raise ConfigError(
            f"a duration is numbers with units: got {text!r}.", hint="Write e.g. '90min', '1d12h'."
        )
    unknown = [unit for _, unit in parts if unit.lower() not in _DURATION_UNITS]
    if unknown:
        raise ConfigError(f"unknown unit of time {unknown[0]!r} in {text!r}. Use s, min, h, d, w.")
    return sum(_number(number) * _DURATION_UNITS[unit.lower()] for number, unit in parts)


def parse_count(text: str) -> float:
    """Return a count written with a prefix.

    Raises:
        ConfigError: It is not a number with an optional prefix and noun.

    >>> parse_count("1.3B")
    1300000000.0
    >>> parse_count("300B tokens")
    300000000000.0
    """
    match = re.fullmatch(rf"{_NUMBER}\s*([kmgbtKMGBT]?)\s*(?:tokens|params)?", text.strip())
    if not match:
        raise ConfigError(f"a count is a number such as 20e9, 124M or 1.3B: got {text!r}.")
    return _number(match[1]) * _PREFIX[match[2].lower()]


_BYTE_UNITS: Final = {
    **{f"{prefix}b": 1000.0**i for i, prefix in enumerate(("", "k", "m", "g", "t"))},
    **{f"{prefix}ib": 1024.0**i for i, prefix in enumerate(("", "k", "m", "g", "t")) if i},
}


def parse_quantity(text: str) -> float:
    """Return a number with a unit of memory or time, or a count with a prefix, in base units.

    Raises:
        ConfigError: It is none of these.

    >>> parse_quantity("20 GiB"), parse_quantity("90 min"), parse_quantity("1.3e9")
    (21474836480.0, 5400.0, 1300000000.0)
    """
    match = re.fullmatch(rf"{_NUMBER}\s*([a-zA-Z]*)", text.strip())
    unit = match[2].lower() if match else ""
    if match and unit in _BYTE_UNITS and unit != "b":
        return _number(match[1]) * _BYTE_UNITS[unit]
    if unit in _DURATION_UNITS and unit != "m":
        return parse_seconds(text)
    return parse_count(text)


def format_number(value: float, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, without trailing noise.

    >>> format_number(0.00031416)
    '0.000314'
    >>> format_number(1234567.0)
    '1.23e+06'
    """
    return f"{value:.{digits}g}"


def format_count(value: float) -> str:
    """Return a count with a prefix.

    >>> format_count(124_400_000), format_count(950), format_count(20e9)
    ('124M', '950', '20B')
    """
    for factor, prefix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor * 0.9995:
            return f"{value / factor:.3g}{prefix}"
    return f"{value:.3g}"


def format_flops(value: float) -> str:
    """Return an amount of arithmetic.

    >>> format_flops(1.234e19)
    '1.23e+19 FLOPs'
    """
    return f"{value:.3g} FLOPs"


def format_rate(value: float) -> str:
    """Return FLOP per second with a prefix.

    >>> format_rate(9.89e14)
    '989 TFLOP/s'
    """
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor * 0.9995 and (prefix != "P" or value >= 10e15):
            return f"{value / factor:.3g} {prefix}FLOP/s"
    return f"{value:.3g} FLOP/s"


def format_bytes(value: float) -> str:
    """Return bytes with a binary prefix.

    >>> format_bytes(40_900_000_000), format_bytes(512)
    ('38.1 GiB', '512 B')
    """
    for factor, prefix in ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")):
        if value >= factor:
            return f"{value / factor:.1f} {prefix}"
    return f"{value:.0f} B"


def format_seconds(value: float) -> str:
    """Return a duration in the largest unit that keeps it readable.

    >>> format_seconds(0.0123), format_seconds(95), format_seconds(7380), format_seconds(180000)
    ('12.3 ms', '1 min 35 s', '2.05 h', '2.08 d')
    """
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    if value < 60:
        return f"{value:.1f} s"
    if value < SECONDS_PER_HOUR:
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes} min {seconds} s"
    if value < 2 * _SECONDS_PER_DAY:
        return f"{value / SECONDS_PER_HOUR:.3g} h"
    return f"{value / _SECONDS_PER_DAY:,.3g} d" if value < 1e8 else f"{value / 3.156e7:.3g} years"


def format_usd(value: float) -> str:
    """Return US dollars.

    >>> format_usd(41.2), format_usd(0.0034), format_usd(1234567.8)
    ('$41.20', '$0.0034', '$1,234,568')
    """
    if 0 < value < 0.1:
        return f"${value:.2g}"
    return f"${value:,.2f}" if value < 1e4 else f"${value:,.0f}"


def format_kwh(value: float) -> str:
    """Return energy.

    >>> format_kwh(0.00312), format_kwh(1250.0)
    ('3.12 Wh', '1.25 MWh')
    """
    for factor, unit in ((1e6, "GWh"), (1e3, "MWh"), (1.0, "kWh")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value * 1e3:.3g} Wh"
