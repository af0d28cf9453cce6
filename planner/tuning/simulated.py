"""The simulated executor: a discrete-event loop with its own clock that drives the same core.

The core, its searcher and its scheduler are those of a real sweep; only the trials come from a
source (tables of curves, or the cost model and a law) and only the clock is made up. What happens
at one time happens in the order in which it was scheduled, so a study under a seed is exactly
repeatable.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from planner.costs import Cluster, resolve_cluster
from planner.study import Study
from planner.trial import TrialResult
from planner.tuning.core import Launch, Sweep, Write
from planner.tuning.driving import Driver
from planner.tuning.ledger import Line
from planner.tuning.records import Decision
from planner.tuning.schedulers import Scheduler
from planner.tuning.searchers import Searcher
from planner.tuning.sources import Source, Timeline

__all__ = ["SimulatedExecutor", "simulate"]


@dataclass(slots=True)
class _Run:
    """One attempt of a trial in simulated time."""

    trial: str
    timeline: Timeline
    next_report: int
    origin: float
    """Study clock at which the trial's training time was zero."""
    num_workers: int

    def when(self) -> float:
        """Return the study's clock at the next report, or at the end after the last."""
        timeline = self.timeline
        if self.next_report < len(timeline.seconds):
            return self.origin + timeline.seconds[self.next_report]
        return self.origin + (timeline.seconds[-1] if timeline.seconds else 0.0)


class _Loop:
    """The event loop of one session."""

    def __init__(
        self, sweep: Sweep, source: Source, now: float, until_seconds: float | None = None
    ) -> None:
        self._sweep, self._source = sweep, source
        self._until = until_seconds
        self.now = now
        self._events: list[tuple[float, int, _Run | None]] = []
        self._num_events = 0
        self._runs: dict[str, _Run] = {}
        self._num_warm: Counter[int] = Counter()
        """Gangs of workers that wait for a trial, by their size."""

    def run(self) -> None:
        """Carry the study through to its end, or until the core stops it."""
        sweep = self._sweep
        limit = sweep.accounts.budget.seconds
        if limit is not None:
            self._push(limit, None)
        self._launch()
        while self._events and not sweep.is_stopping and self._runs:
            when, _, run = heapq.heappop(self._events)
            if self._until is not None and when > self._until:
                self.now = self._until
                return
            self.now = when
            if run is None:
                sweep.tick(self.now)
            elif self._runs.get(run.trial) is run:
                self._advance(run)
        sweep.tick(self.now)

    def _push(self, when: float, run: _Run | None) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (when, self._num_events, run))

    def _advance(self, run: _Run) -> None:
        """Carry out a trial's next report, or its end, and what follows from it."""
        timeline, index = run.timeline, run.next_report
        if index < len(timeline.seconds):
            run.next_report = index + 1
            metrics = {**timeline.reports[index], "train_flops": timeline.flops[index]}
            if self._sweep.report(run.trial, metrics, self.now) is Decision.CONTINUE:
                if index + 1 < len(timeline.seconds):
                    self._push(run.when(), run)
                    return
                self._finish(run)
        else:
            self._finish(run)
        del self._runs[run.trial]
        self._num_warm[run.num_workers] += 1
        self._launch()

    def _finish(self, run: _Run) -> None:
        timeline = run.timeline
        result = TrialResult(
            trial=run.trial, config={}, state=timeline.end, reason=timeline.reason,
        )  # fmt: skip
        self._sweep.end(run.trial, result, self.now)

    def _launch(self) -> None:
        while (launch := self._sweep.next_launch(self.now)) is not None:
            self._start(launch)

    def _start(self, launch: Launch) -> None:
        record = self._sweep.trials[launch.trial]
        timeline = self._source.timeline(
            launch.trial, record.point, launch.config, launch.report_at_flops
        )
        done = record.flops
        first = next((i for i, f in enumerate(timeline.flops) if f > done), len(timeline.flops))
        trained = timeline.seconds[first - 1] if first else 0.0
        workers = record.num_workers
        startup = timeline.startup_seconds
        if timeline.warm_seconds is not None and self._num_warm[workers]:
            self._num_warm[workers] -= 1
            startup = timeline.warm_seconds
        run = _Run(launch.trial, timeline, first, self.now + startup - trained, workers)
        self._runs[launch.trial] = run
        self._sweep.workers_started(launch.trial, self.now, done)
        self._push(run.when(), run)


def simulate(
    study: Study,
    source: Source,
    *,
    cluster: Cluster | None = None,
    num_devices: int | None = None,
    searcher: Searcher | None = None,
    scheduler: Scheduler | None = None,
    write: Write | None = None,
    lines: Sequence[Line] = (),
    until_seconds: float | None = None,
) -> Sweep:
    """Run a study in simulated time and return the core as it stands at the end.

    Args:
        study: What to run.
        source: Where its trials come from.
        cluster: By default the study's.
        num_devices: Devices to fill; by default the cluster's.
        searcher: By default the one that the study asks for.
        scheduler: By default the one that the study asks for.
        write: Takes each line of the ledger; by default none is kept.
        lines: Lines of an earlier session to go on from.
        until_seconds: Study clock at which to look away, trials under way left as they are.
    """
    sweep = Sweep(
        study,
        cluster or resolve_cluster(study.cluster),
        write=write or _forget,
        num_devices=num_devices,
        searcher=searcher,
        scheduler=scheduler,
        price=source.price,
    )
    sweep.replay(lines)
    sweep.begin(sweep.now)
    _Loop(sweep, source, sweep.now, until_seconds).run()
    return sweep


def _forget(line: Line, durable: bool) -> None:
    """Keep no ledger."""


class SimulatedExecutor:
    """Runs a session in simulated time, in the place of `inline` or `ray`.

    Args:
        source: Where the trials come from.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def num_devices(self, wanted: int, device: str) -> int:
        """Return the wanted number: nothing real is needed."""
        return wanted

    def close(self) -> None:
        """Let go of nothing."""

    def run(self, driver: Driver) -> None:
        """Carry the session through."""
        _Loop(driver.sweep, self._source, driver.clock.now()).run()
