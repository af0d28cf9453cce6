"""Accounts: what a study has burnt, what its running trials will still need, what it may start.

All amounts are kept as running sums, so that asking what was spent costs the same however many
trials there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from planner.budget import Budget, Spend
from planner.tuning.records import Attempt, TrialRecord
from planner.units import SECONDS_PER_HOUR

__all__ = ["Accounts"]

_MIN_FRACTION: Final = 0.05
"""Share of its compute that a trial must have done before its speed corrects the estimates."""
_MAX_CORRECTION: Final = 20.0


@dataclass(slots=True)
class _Meter:
    """An amount that running attempts burn in proportion to time: `rate * now - offset`."""

    rate: float = 0.0
    offset: float = 0.0

    def change(self, rate: float, since: float) -> None:
        """Let a further attempt burn that much per second since a time; negative: no longer."""
        self.rate += rate
        self.offset += rate * since

    def read(self, now: float) -> float:
        """Return the amount at a time."""
        return max(0.0, self.rate * now - self.offset)


class Accounts:
    """What was spent and what may be."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._limits = budget.limits()
        self._closed = Spend()
        self._num_open = 0
        self._reset_meters()
        self._measured_seconds = 0.0
        self._expected_seconds = 0.0

    def _reset_meters(self) -> None:
        self._open_flops = 0.0
        self._meters = {name: _Meter() for name in ("device_hours", "usd", "kwh")}

    def add(self, extra: Budget) -> None:
        """Raise the limits."""
        self.budget = self.budget.plus(extra)
        self._limits = self.budget.limits()

    def open_attempt(self, record: TrialRecord) -> None:
        """Begin an attempt of a trial where it stands: it burns nothing while it waits."""
        flops = record.flops
        attempt = Attempt(num_workers=record.num_workers, start_flops=flops, flops=flops)
        record.attempts.append(attempt)
        self._num_open += 1

    def start_attempt(self, record: TrialRecord, now: float, start_flops: float) -> None:
        """Count the running attempt from now, when its workers are up, and from its checkpoint."""
        attempt = record.attempts[-1]
        self._turn(record, attempt, -1.0)
        attempt.start_seconds = now
        attempt.start_flops = attempt.flops = start_flops
        self._turn(record, attempt, 1.0)

    def advance(self, record: TrialRecord, flops: float, now: float) -> None:
        """Enter the compute that the running attempt has reached by a report."""
        attempt = record.attempts[-1]
        attempt.report_seconds = now
        if flops > attempt.flops:
            before = attempt.burnt_flops()
            attempt.flops = flops
            self._open_flops += attempt.burnt_flops() - before

    def close_attempt(self, record: TrialRecord, now: float) -> None:
        """End the running attempt of a trial and enter what it burnt; nothing if there is none."""
        if not record.attempts or record.attempts[-1].end_seconds is not None:
            return
        attempt = record.attempts[-1]
        self._turn(record, attempt, -1.0)
        self._num_open -= 1
        if not self._num_open:
            self._reset_meters()  # what rounding has left
        attempt.end_seconds = now
        self._closed = self._closed + record.attempt_spend(attempt, now)

    def _turn(self, record: TrialRecord, attempt: Attempt, sign: float) -> None:
        """Put a running attempt on the meters, or with -1 take it off."""
        self._open_flops += sign * attempt.burnt_flops()
        since = attempt.start_seconds
        if since is None:
            return
        rate = sign * attempt.num_workers / SECONDS_PER_HOUR
        self._meters["device_hours"].change(rate, since)
        self._meters["usd"].change(rate * record.usd_per_device_hour, since)
        self._meters["kwh"].change(rate * record.kwh_per_device_hour, since)

    def found_checkpoint(self, record: TrialRecord, flops: float) -> None:
        """Correct the last attempt that ran: its checkpoint holds this much compute."""
        ran = [a for a in record.attempts[:-1] if a.start_seconds is not None]
        if not ran:
            return
        before = ran[-1]
        entered = before.burnt_flops()
        before.kept_flops = flops
        self._closed = self._closed + Spend(flops=before.burnt_flops() - entered)

    def learn(self, record: TrialRecord) -> None:
        """Let the speed of a trial that ended correct the estimates of the others."""
        if record.attempts and record.fidelity >= _MIN_FRACTION:
            self._measured_seconds += record.elapsed_seconds(0.0)
            self._expected_seconds += record.expected_seconds()

    def spent(self, name: str, now: float) -> float:
        """Return how much of one field of the budget was burnt up to a time of the study's clock."""
        if name == "seconds":
            return now
        if name == "flops":
            return self._closed.flops + max(0.0, self._open_flops)
        closed: float = getattr(self._closed, name)
        return closed + self._meters[name].read(now)

    def spend(self, now: float) -> Spend:
        """Return everything that was burnt up to a time of the study's clock."""
        names = ("flops", "device_hours", "usd", "kwh")
        return Spend(seconds=now, **{name: self.spent(name, now) for name in names})

    def spent_field(self, now: float) -> str | None:
        """Return the field of the budget that is spent, the worst one, or None."""
        if all(self.spent(name, now) < limit for name, limit in self._limits.items()):
            return None
        return self.budget.exceeded_by(self.spend(now))

    def correction(self, running: Iterable[TrialRecord]) -> float:
        """Return measured over estimated seconds of the trials so far; 1 when nothing is known.

        Both are summed over trials that have done a twentieth of their compute, so long trials
        weigh more; the ratio is kept within a factor of twenty of 1.
        """
        measured, expected = self._measured_seconds, self._expected_seconds
        for record in running:
            reported = record.attempts[-1].report_seconds
            if reported is not None and record.fidelity >= _MIN_FRACTION:
                measured += record.elapsed_seconds(reported)
                expected += record.expected_seconds()
        if not measured or not expected:
            return 1.0
        return min(max(measured / expected, 1 / _MAX_CORRECTION), _MAX_CORRECTION)

    def need(self, record: TrialRecord, name: str, correction: float, now: float) -> float:
        """Return how much of one field a trial still needs, to start and to train.

        Args:
            record: The trial; without an estimate it needs nothing.
            name: A field of the budget.
            correction: Measured over estimated seconds.
            now: The study's clock.
        """
        if record.planned is None:
            return 0.0
        left = 1.0 - record.fidelity
        if name == "flops":
            return left * record.planned.flops
        starting = record.startup_seconds
        if record.is_running:
            starting -= min(starting, record.attempts[-1].elapsed_seconds(now))
        training = left * (record.planned.seconds - record.startup_seconds)
        seconds = (training + starting) * correction
        if name == "seconds":
            return seconds
        hours = seconds * record.num_workers / SECONDS_PER_HOUR
        price = {"usd": record.usd_per_device_hour, "kwh": record.kwh_per_device_hour}
        return hours * price.get(name, 1.0)

    def shortfall(
        self, record: TrialRecord, running: Collection[TrialRecord], now: float
    ) -> tuple[str, float, float] | None:
        """Return the limit that a further trial would break, or None if it can be paid for.

        What the running trials still need is set aside first; of wall-clock seconds only the
        trial's own count, since trials run side by side.

        Returns:
            The budget's field, what the trial needs of it, and what is free.
        """
        correction = self.correction(running)
        for name, limit in self._limits.items():
            wanted = self.need(record, name, correction, now)
            free = limit - self.spent(name, now)
            if name != "seconds":
                free -= sum(self.need(other, name, correction, now) for other in running)
            if wanted > free:
                return name, wanted, free
        return None
