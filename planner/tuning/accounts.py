"""Accounts: what a study has burnt, what its running trials will still need, what it may start.

All amounts are kept as running sums, so that asking costs as much as there are running trials.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from planner.budget import Budget, Spend
from planner.tuning.records import TrialRecord
from planner.units import SECONDS_PER_HOUR

__all__ = ["Accounts"]

_MIN_FRACTION: Final = 0.05
"""Share of its compute that a trial must have done before its speed corrects the estimates."""
_MAX_CORRECTION: Final = 20.0


class Accounts:
    """What was spent and what may be."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._closed = Spend()
        self._measured_seconds = 0.0
        self._expected_seconds = 0.0

    def close_attempt(self, record: TrialRecord, now: float) -> None:
        """End the running attempt of a trial and enter what it burnt; nothing if there is none."""
        if not record.attempts or record.attempts[-1].end_seconds is not None:
            return
        attempt = record.attempts[-1]
        attempt.end_seconds = now
        self._closed = self._closed + record.attempt_spend(attempt, now)

    def found_checkpoint(self, record: TrialRecord, flops: float) -> None:
        """Correct the attempt before the last: its checkpoint holds this much compute."""
        if len(record.attempts) < 2:
            return
        before = record.attempts[-2]
        entered = before.burnt_flops()
        before.kept_flops = flops
        self._closed = self._closed + Spend(flops=before.burnt_flops() - entered)

    def learn(self, record: TrialRecord) -> None:
        """Let the speed of a trial that ended correct the estimates of the others."""
        if record.attempts and record.fidelity >= _MIN_FRACTION:
            self._measured_seconds += record.elapsed_seconds(0.0)
            self._expected_seconds += record.expected_seconds()

    def spend(self, running: Iterable[TrialRecord], now: float) -> Spend:
        """Return everything that was burnt up to a time of the study's clock."""
        closed = self._closed
        flops, hours, usd, kwh = closed.flops, closed.device_hours, closed.usd, closed.kwh
        # Asked at every report: plain sums, since building a Spend per trial is half of the work.
        for record in running:
            attempt = record.attempts[-1]
            took = attempt.elapsed_seconds(now) * attempt.num_workers / SECONDS_PER_HOUR
            flops += attempt.burnt_flops()
            hours += took
            usd += took * record.usd_per_device_hour
            kwh += took * record.kwh_per_device_hour
        return Spend(flops=flops, device_hours=hours, usd=usd, seconds=now, kwh=kwh)

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

    def need(self, record: TrialRecord, correction: float, now: float) -> Spend:
        """Return what a trial still needs by its corrected estimate, to start and to train."""
        if record.planned is None:
            return Spend()
        left = 1.0 - record.fidelity
        seconds = left * (record.planned.seconds - record.startup_seconds)
        starting = record.startup_seconds
        if record.is_running:
            starting -= min(starting, record.attempts[-1].elapsed_seconds(now))
        seconds = (seconds + starting) * correction
        hours = seconds * record.num_workers / SECONDS_PER_HOUR
        return Spend(
            flops=left * record.planned.flops,
            device_hours=hours,
            usd=hours * record.usd_per_device_hour,
            kwh=hours * record.kwh_per_device_hour,
            seconds=seconds,
        )

    def shortfall(
        self, record: TrialRecord, running: Iterable[TrialRecord], now: float
    ) -> tuple[str, float, float] | None:
        """Return the limit that a further trial would break, or None if it can be paid for.

        What the running trials still need is set aside first; of wall-clock seconds only the
        trial's own count, since trials run side by side.

        Returns:
            The budget's field, what the trial needs of it, and what is free.
        """
        running = list(running)
        correction = self.correction(running)
        reserved = Spend()
        for other in running:
            reserved = reserved + self.need(other, correction, now)
        wanted = self.need(record, correction, now)
        for name, left in self.budget.remaining(self.spend(running, now)).items():
            free = left if name == "seconds" else left - getattr(reserved, name)
            if getattr(wanted, name) > free:
                return name, getattr(wanted, name), free
        return None
