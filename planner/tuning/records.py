"""What the core knows of each trial: its attempts, its last report, what it has burnt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Final

from planner.budget import Spend
from planner.results import Copy
from planner.search_space import Point
from planner.trial import TrialConfig, TrialResult, TrialState
from planner.units import SECONDS_PER_HOUR

__all__ = ["MEASURED", "SAME_FLOPS", "Attempt", "Decision", "TrialRecord"]

SAME_FLOPS: Final = 1e-9
"""Relative difference below which two amounts of compute are one."""


class Decision(StrEnum):
    """What a trial does after a report."""

    CONTINUE = "continue"
    STOP = "stop"
    PAUSE = "pause"


MEASURED: Final = frozenset(f.name for f in fields(TrialResult)) - {
    "trial", "config", "state", "reason", "num_workers", "elapsed_seconds", "device_hours", "usd",
    "kwh", "num_attempts", "metrics", "point",
}  # fmt: skip
"""Columns that come from the trial itself; the others are known better here."""


@dataclass(kw_only=True, slots=True)
class Attempt:
    """One execution of a trial, from the start of its workers to their end."""

    num_workers: int
    start_seconds: float | None = None
    """Study clock when its workers were up; until then it burns nothing."""
    end_seconds: float | None = None
    start_flops: float = 0.0
    """Compute that its checkpoint held."""
    flops: float = 0.0
    """Compute that the trial had reached at the attempt's last report."""
    report_seconds: float | None = None
    """Study clock at the last report."""
    kept_flops: float = 0.0
    """Compute that the checkpoint it left behind holds, once the next attempt has found it."""

    def elapsed_seconds(self, now: float) -> float:
        """Return how long it ran, or has run until now."""
        if self.start_seconds is None:
            return 0.0
        end = now if self.end_seconds is None else self.end_seconds
        return max(0.0, end - self.start_seconds)

    def burnt_flops(self) -> float:
        """Return the compute it spent, work that was lost after its last report included.

        Work after the last report is known only by its time, so it is charged at the attempt's
        own rate. An attempt that ended with a report has none.
        """
        reported = max(0.0, self.flops - self.start_flops)
        start, end = self.start_seconds, self.end_seconds
        if start is None or end is None or self.report_seconds is None or not reported:
            return max(reported, self.kept_flops - self.start_flops)
        busy = self.report_seconds - start
        rate = reported / busy if busy > 0 else 0.0
        lost = rate * max(0.0, end - self.report_seconds)
        return max(reported + lost, self.kept_flops - self.start_flops)


@dataclass(kw_only=True, slots=True)
class TrialRecord:
    """One trial in the core."""

    trial: str
    point: Point
    config: TrialConfig | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    """The configuration as plain data, also where it is not a valid TrialConfig."""
    planned: Spend | None = None
    """Estimated charge of the whole trial."""
    num_params: Mapping[str, int | None] = field(default_factory=dict)
    usd_per_device_hour: float = 0.0
    kwh_per_device_hour: float = 0.0
    has_price: bool = False
    has_power: bool = False
    startup_seconds: float = 0.0
    state: TrialState = TrialState.PLANNED
    reason: str | None = None
    by_budget: bool = False
    """Whether it was the budget that stopped it, so that a larger one lets it go on."""
    attempts: list[Attempt] = field(default_factory=list)
    num_failures: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    """Newest value of every measured column."""
    flops: float = 0.0
    """Compute that it has reached."""
    metrics: dict[str, float] = field(default_factory=dict)
    rungs: tuple[float, ...] = ()
    """Compute at which the scheduler wants a report, rising."""
    lineage: list[Copy] = field(default_factory=list)
    """Whom it copied, and when."""
    passed_over: int = 0
    """How often another trial was started before this waiting one."""
    num_workers: int = field(init=False)
    """Devices that it occupies."""
    planned_flops: float = field(init=False)
    """Compute of the whole trial."""
    comparable_flops: float = field(init=False)
    """Compute up to which its loss can be compared with that of longer trials."""

    def __post_init__(self) -> None:
        self._settle()

    def _settle(self) -> None:
        """Work out what follows from the configuration: it is asked for at every report."""
        self.num_workers = self.config.layout.num_workers if self.config else 1
        self.planned_flops = self.planned.flops if self.planned else 0.0
        stable = self.config.schedule.stable_fraction if self.config else 1.0
        self.comparable_flops = self.planned_flops * stable * (1 + 1e-9)

    def copy(self, donor: TrialRecord, changed: TrialRecord) -> None:
        """Go on from where another trial stands, with a changed configuration."""
        for name in ("point", "config", "data", "planned", "startup_seconds"):
            setattr(self, name, getattr(changed, name))
        self.last, self.flops = dict(donor.last), donor.flops
        self._settle()

    @property
    def is_running(self) -> bool:
        """Whether an attempt is under way."""
        return self.state is TrialState.RUNNING

    @property
    def fidelity(self) -> float:
        """Share of its compute that it has reached, in 0..1."""
        return min(1.0, self.flops / self.planned_flops) if self.planned_flops else 0.0

    def observe(self, values: Mapping[str, Any]) -> None:
        """Take over what a report or a result measured."""
        for name, value in values.items():
            if name in MEASURED and _is_known(value):
                self.last[name] = value
        self.flops = float(self.last.get("train_flops") or 0.0)
        for name, value in (values.get("metrics") or {}).items():
            if _is_known(value):
                self.metrics[name] = value

    def elapsed_seconds(self, now: float) -> float:
        """Return the seconds of all attempts."""
        return sum(attempt.elapsed_seconds(now) for attempt in self.attempts)

    def attempt_spend(self, attempt: Attempt, now: float) -> Spend:
        """Return what one attempt has burnt; the study's clock counts the `seconds`."""
        hours = attempt.elapsed_seconds(now) * attempt.num_workers / SECONDS_PER_HOUR
        return Spend(
            flops=attempt.burnt_flops(),
            device_hours=hours,
            usd=hours * self.usd_per_device_hour,
            kwh=hours * self.kwh_per_device_hour,
        )

    def expected_seconds(self) -> float:
        """Return the estimated seconds of what it has done so far."""
        if self.planned is None:
            return 0.0
        training = self.planned.seconds - self.startup_seconds
        return self.startup_seconds + self.fidelity * training

    def result(self, now: float) -> TrialResult:
        """Return its row."""
        ran = bool(self.attempts)
        spend = sum((self.attempt_spend(attempt, now) for attempt in self.attempts), Spend())
        values = {**self.num_params, **self.last}
        kwh = spend.kwh if ran and self.has_power else None
        if values.get("energy_source") in ("nvml", "rapl"):
            kwh = spend.device_hours * values["power_watts"] / 1e3
        elif kwh is not None:
            values["energy_source"] = "modelled"
        return TrialResult(
            trial=self.trial,
            config=dict(self.data),
            state=self.state,
            reason=self.reason or "; ".join(map(str, self.lineage)) or None,
            num_workers=self.num_workers,
            elapsed_seconds=self.elapsed_seconds(now) if ran else None,
            device_hours=spend.device_hours if ran else None,
            usd=spend.usd if ran and self.has_price else None,
            kwh=kwh,
            num_attempts=len(self.attempts),
            metrics=dict(self.metrics),
            point=dict(self.point),
            **values,
        )


def _is_known(value: object) -> bool:
    return value is not None and (not isinstance(value, float) or math.isfinite(value))
