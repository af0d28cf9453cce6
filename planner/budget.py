"""Budget: any subset of FLOPs, device-hours, USD, wall-clock seconds and kWh, and what was spent."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from pydantic import model_validator

from planner.config import Config, PositiveFloat, parse_config
from planner.units import (
    SECONDS_PER_HOUR,
    format_flops,
    format_kwh,
    format_seconds,
    format_usd,
    parse_budget,
)

__all__ = ["Budget", "Spend"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spend:
    """An amount of everything that a budget can limit."""

    flops: float = 0.0
    device_hours: float = 0.0
    usd: float = 0.0
    seconds: float = 0.0
    kwh: float = 0.0

    def __add__(self, other: Spend) -> Spend:
        """Return the sum, field by field."""
        return Spend(
            flops=self.flops + other.flops,
            device_hours=self.device_hours + other.device_hours,
            usd=self.usd + other.usd,
            seconds=self.seconds + other.seconds,
            kwh=self.kwh + other.kwh,
        )


class Budget(Config):
    """What may be spent; an absent limit does not bind."""

    flops: PositiveFloat | None = None
    """Training FLOPs."""
    device_hours: PositiveFloat | None = None
    """Hours times devices, from the start of a trial's workers to their end."""
    usd: PositiveFloat | None = None
    """US dollars at the cluster's price per device-hour."""
    seconds: PositiveFloat | None = None
    """Wall-clock seconds of the whole study, without the time between interruption and resume."""
    kwh: PositiveFloat | None = None
    """Energy in kilowatt-hours."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.limits():
            raise ValueError(
                "a budget needs at least one of flops, device_hours, usd, seconds, kwh"
            )
        return self

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Return the budget that a person wrote, such as `20 device-hours, 40 usd`.

        Raises:
            ConfigError: An amount has no unit, an unknown one, or is not above 0.

        >>> Budget.parse("1e19 flops").flops
        1e+19
        """
        return parse_config(parse_budget(text), cls, f"budget {text!r}")

    def limits(self) -> dict[str, float]:
        """Return the limits that are set, by field."""
        named = {
            "flops": self.flops,
            "device_hours": self.device_hours,
            "usd": self.usd,
            "seconds": self.seconds,
            "kwh": self.kwh,
        }
        return {name: limit for name, limit in named.items() if limit is not None}

    def remaining(self, spend: Spend) -> dict[str, float]:
        """Return what is left of each limit; negative where it was exceeded."""
        return {name: limit - getattr(spend, name) for name, limit in self.limits().items()}

    def spent_fraction(self, spend: Spend) -> float:
        """Return the largest share of any limit that has been spent.

        >>> Budget(usd=10.0, device_hours=2.0).spent_fraction(Spend(usd=1.0, device_hours=1.0))
        0.5
        """
        spent: dict[str, float] = asdict(spend)
        return max(spent[name] / limit for name, limit in self.limits().items())

    def exceeded_by(self, spend: Spend) -> str | None:
        """Return the field whose limit a spend reaches or passes, the worst one, or None.

        >>> Budget(usd=10.0).exceeded_by(Spend(usd=10.0))
        'usd'
        """
        over = {n: -left for n, left in self.remaining(spend).items() if left <= 0}
        over = {n: excess / self.limits()[n] for n, excess in over.items()}
        return max(over, key=lambda name: over[name]) if over else None

    def plus(self, extra: Budget) -> Budget:
        """Return this budget with the limits of another added to those that are set here."""
        merged = {
            name: limit + (getattr(extra, name) or 0.0) for name, limit in self.limits().items()
        }
        return Budget(**(extra.limits() | merged))

    def __str__(self) -> str:
        """Return the limits as people read them."""
        return ", ".join(format_amount(name, value) for name, value in self.limits().items())


def format_amount(name: str, value: float) -> str:
    """Return one amount of a budget field as people read it.

    >>> format_amount("device_hours", 0.05)
    '0.05 device-hours'
    """
    if name == "flops":
        return format_flops(value)
    if name == "usd":
        return format_usd(value)
    if name == "seconds":
        return format_seconds(value)
    if name == "kwh":
        return format_kwh(value)
    if 0 < value < 0.01:
        return f"{value * SECONDS_PER_HOUR:.3g} device-seconds"
    return f"{value:.3g} device-hours"
