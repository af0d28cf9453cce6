"""The core of a sweep: decides what runs, what stops and what may be spent. No Ray, no clock.

Executors tell it what happened, with the study's clock in seconds; it answers what to do. Every
event becomes a line of the ledger first and changes the state only through `apply`, so that the
lines of a ledger, applied in order, give the same state, the same searcher and scheduler, and the
same next decision.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from planner.budget import Budget, format_amount
from planner.costs import Cluster
from planner.errors import TrialError
from planner.planning import MAX_REJECTIONS_PER_TRIAL, Candidate, candidate
from planner.search_space import Point
from planner.study import Study
from planner.trial import TrialConfig, TrialResult, TrialState
from planner.tuning.ledger import Line
from planner.tuning.lines import proposed_line
from planner.tuning.population import Population
from planner.tuning.records import Decision, TrialRecord
from planner.tuning.schedulers import Scheduler, make_scheduler
from planner.tuning.searchers import Searcher, make_searcher
from planner.tuning.state import SweepState

__all__ = ["Launch", "Sweep"]

_LOOK_AHEAD: Final = 16
"""Fixed proposals that may wait while smaller ones fill the gaps."""
_MAX_PASSED_OVER: Final = 8
"""Times that a waiting trial may be passed over before devices are kept free for it."""
_MAX_DRAWS: Final = 10
"""Changes of a copied point that may be infeasible before the copy is left out."""
_SAME_FAILURES: Final = 3
"""Trials that end in the same failure, none having trained, before the study gives up."""

Write = Callable[[Line, bool], None]
"""Takes a line, and whether it must be on the disk before anything else happens."""

Price = Callable[[str, Point], Candidate]
"""Takes a trial's name and its point."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A trial to start now."""

    trial: str
    attempt: int
    """Counts from 1."""
    config: TrialConfig
    report_at_flops: tuple[float, ...]


class Sweep(SweepState):
    """One run of a study.

    Args:
        study: What to run.
        cluster: What it runs on.
        write: Takes each new line of the ledger.
        num_devices: Devices to fill; by default the cluster's.
        searcher: By default the one that the study asks for.
        scheduler: By default the one that the study asks for.
        price: What tells the cost of a point, or why it cannot run; by default the cost model.
    """

    def __init__(
        self,
        study: Study,
        cluster: Cluster,
        *,
        write: Write,
        num_devices: int | None = None,
        searcher: Searcher | None = None,
        scheduler: Scheduler | None = None,
        price: Price | None = None,
    ) -> None:
        super().__init__(
            study,
            cluster,
            num_devices or cluster.num_devices,
            searcher or make_searcher(study),
            scheduler or make_scheduler(study.search.scheduler, study.search.seed),
        )
        self._write = write
        self._price = price or (lambda trial, point: candidate(study, cluster, trial, point))
        self._exhausted = False
        self._dumped: tuple[TrialConfig | None, dict[str, Any]] = None, {}
        """The configuration that was written last, and as what."""

    # What an executor asks and tells.

    def begin(self, now: float, *, added: Budget | None = None) -> None:
        """Open a session: everything that ran when the last one ended goes back to the queue."""
        self._record(
            {"kind": "session", "added": added.limits() if added else None}, now, durable=True
        )
        self._settle(now)

    def next_launch(
        self, now: float, *, prepare: Callable[[str, str], None] | None = None
    ) -> Launch | None:
        """Return a trial to start now, or None: nothing fits, or nothing is left.

        Args:
            now: The study's clock.
            prepare: Gives a trial the checkpoint of another: called with both before any start.
        """
        self.tick(now)
        if self.is_stopping or len(self.running) >= self._most_at_once:
            return None
        record = self._choose(now)
        if record is None:
            return None
        if prepare is not None:
            for trial, donor in self.copies:
                prepare(trial, donor)
        attempt = len(record.attempts) + 1
        self._record({"kind": "started", "trial": record.trial, "attempt": attempt}, now)
        assert record.config is not None  # noqa: S101 -- infeasible points never wait
        return Launch(
            trial=record.trial, attempt=attempt, config=record.config, report_at_flops=record.rungs
        )

    def workers_started(self, trial: str, now: float, start_flops: float = 0.0) -> None:
        """Hear that a trial's workers are up: its time is charged from here on."""
        self._record({"kind": "up", "trial": trial, "flops": start_flops}, now)

    def report(self, trial: str, metrics: Mapping[str, Any], now: float) -> Decision:
        """Hear a report of a running trial and say whether it goes on."""
        record = self.trials[trial]
        if not record.is_running:
            return Decision.STOP
        attempt = len(record.attempts)
        line: Line = {
            "kind": "report", "trial": trial, "attempt": attempt, "metrics": dict(metrics),
        }  # fmt: skip
        if broken := _not_finite(metrics):
            line["not_finite"] = broken
        self._record(line, now)
        self._settle(now)
        if record.is_running and record.fidelity < 1.0:
            self.tick(now)
        return Decision.CONTINUE if record.is_running else Decision.STOP

    def end(self, trial: str, result: TrialResult, now: float) -> None:
        """Hear the result of a trial that ended by itself."""
        record = self.trials[trial]
        if not record.is_running:
            return
        if result.state is TrialState.FAILED:
            self.lose(trial, result.reason or "failed", now)
            return
        state = TrialState.COMPLETED if result.state is TrialState.RUNNING else result.state
        self._end(record, state, result.reason, now, measured=asdict(result))
        self.tick(now)

    def lose(self, trial: str, reason: str, now: float, *, retry: bool = True) -> None:
        """Hear that an attempt died through no fault of the configuration; retried if it may be."""
        record = self.trials[trial]
        if not record.is_running:
            return
        again = retry and record.num_failures < self.study.search.max_retries
        if again:
            self._record({"kind": "lost", "trial": trial, "reason": reason}, now, durable=True)
            return
        self._end(record, TrialState.FAILED, reason, now)
        self._give_up_if_hopeless(now)

    def tick(self, now: float) -> None:
        """Let time pass: stops everything when the budget is spent."""
        self.now = max(self.now, now)
        field = None if self.is_stopping else self.accounts.spent_field(now)
        if field is not None:
            limit = format_amount(field, self.accounts.budget.limits()[field])
            reason = f"the budget of {limit} is spent"
            for record in self.running:
                self._end(record, TrialState.STOPPED, reason, now, by_budget=True)
            self._record({"kind": "budget_spent", "field": field, "reason": reason}, now)

    def heartbeat(self, now: float) -> None:
        """Write down that time has passed, so that a crash loses no more than this of the bill."""
        if self.running:
            self._record({"kind": "heartbeat"}, now)

    def interrupt(self, reason: str, now: float) -> None:
        """Hear that the driver was asked to stop; what runs will go on when it is resumed."""
        self._record({"kind": "interrupted", "reason": reason}, now, durable=True)

    def end_session(self, now: float) -> None:
        """Close the session: the executor has nothing more to do."""
        self._record({"kind": "session_ended"}, now, durable=True)

    def note(self, text: str, now: float) -> None:
        """Write down something worth knowing later."""
        self._record({"kind": "note", "text": text}, now)

    def is_over(self, now: float) -> bool:
        """Return whether nothing runs and nothing will be started."""
        if self._running:
            return False
        return self.is_stopping or self._choose(now) is None

    # Decisions.

    @property
    def _most_at_once(self) -> int:
        return min(self.study.search.max_concurrent or self.num_devices, self.num_devices)

    def _choose(self, now: float) -> TrialRecord | None:
        """Return the first waiting trial that fits the free devices and the budget."""
        free = self.num_devices - sum(record.num_workers for record in self.running)
        index = aside = 0
        while index < len(self._waiting) or self._propose(now):
            if index >= len(self._waiting):
                continue
            record = self.trials[self._waiting[index]]
            index += 1
            if record.trial in self._held or record.num_workers > self.num_devices:
                aside += 1  # a session on fewer devices leaves large trials as they are
                continue
            fits, is_due = record.num_workers <= free, record.passed_over >= _MAX_PASSED_OVER
            if (fits or is_due) and self.accounts.shortfall(record, self.running, now) is None:
                return record if fits else None
            if index - aside >= self._most_waiting:
                break
        if not self._held or self._running:
            return None
        self._meet(now)
        return self._choose(now)

    def _meet(self, now: float) -> None:
        """Let a population whose members have all paused copy its best, and go on."""
        scheduler = self._scheduler
        assert isinstance(scheduler, Population)  # noqa: S101 -- no other scheduler pauses
        members = [
            (record, loss)
            for record in self.waiting
            if record.trial in self._held and (loss := self.loss(record)) is not None
        ]
        copied = dict(self.copies)  # by a session that died while they met
        for trial, donor in scheduler.copies(members, self.generation):
            if trial in copied:
                scheduler.copied(trial, donor, self.trials[trial].point)
                continue
            for draw in range(_MAX_DRAWS):
                source = self.trials[donor].point
                point = scheduler.changed(
                    self.study.search_space, self.study.base, source, trial, draw
                )
                found = self._price(trial, point)
                if found.is_feasible:
                    self._record(self._priced_line(found) | {"kind": "copied", "donor": donor}, now)
                    break
        self._record({"kind": "generation"}, now)

    @property
    def _most_waiting(self) -> int:
        return _LOOK_AHEAD if self._searcher.looks_ahead else 1

    def _propose(self, now: float) -> bool:
        """Take the next proposal of the searcher into the books; False when there is none."""
        wanted = self.study.search.num_trials
        enough = wanted is not None and (
            len(self.trials) - self._num_rejected >= wanted
            or len(self.trials) >= wanted * MAX_REJECTIONS_PER_TRIAL
        )
        if self._exhausted or enough:
            return False
        trial = f"t{len(self.trials):03d}"
        point = self._searcher.propose(trial)
        if point is None:
            self._exhausted = True
            return False
        found = self._price(trial, point)
        self._record(self._priced_line(found), now)
        return True

    def _priced_line(self, found: Candidate) -> Line:
        """Return the line that puts a point into the books; its configuration is kept as it is."""
        if found.config is not None:
            self._priced[found.trial] = found.config
            if found.config is not self._dumped[0]:  # simulated trials may share one
                self._dumped = found.config, found.config.model_dump(mode="json")
        return proposed_line(self.study, found, self._dumped[1], self.num_devices)

    def _settle(self, now: float) -> None:
        """Carry out what reports led to and no line has carried out yet."""
        for trial, broken in list(self._not_finite.items()):
            reason = f"{broken} is not finite"
            self._end(self.trials[trial], TrialState.DIVERGED, reason, now)
        for trial, verdict in list(self._verdicts.items()):
            record = self.trials[trial]
            if verdict is Decision.PAUSE:
                self._record({"kind": "paused", "trial": trial}, now)
            else:
                reason = f"not among the best at {record.fidelity:.0%} of its compute"
                self._end(record, TrialState.STOPPED, reason, now)

    def _end(
        self, record: TrialRecord, state: TrialState, reason: str | None, now: float, *,
        by_budget: bool = False, measured: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        line: Line = {"kind": "ended", "trial": record.trial, "state": str(state), "reason": reason}
        if by_budget:
            line["by_budget"] = True
        if measured:
            line["metrics"] = {k: v for k, v in measured.items() if k not in _KNOWN_ELSEWHERE}
        self._record(line, now, durable=True)

    def _give_up_if_hopeless(self, now: float) -> None:
        reasons = Counter(
            (r.reason or "").split("\n")[0]
            for r in self.trials.values()
            if r.state is TrialState.FAILED
        )
        trained = any(r.flops for r in self.trials.values())
        reason, count = reasons.most_common(1)[0]
        if not trained and count >= _SAME_FAILURES and len(reasons) == 1:
            self._record({"kind": "gave_up", "reason": reason}, now, durable=True)

    # The ledger.

    def _record(self, line: Line, now: float, *, durable: bool = False) -> None:
        self.now = max(self.now, now)
        line["t"] = self.now
        self._write(line, durable)
        self.apply(line)

    def replay(self, lines: Sequence[Line]) -> None:
        """Apply the lines of a ledger; `begin` opens the next session after that.

        Raises:
            TrialError: The searcher no longer proposes what the ledger says.
        """
        for line in lines:
            if line["kind"] == "proposed":
                self._check_replayed(line)
            self.apply(line)

    def _check_replayed(self, line: Line) -> None:
        point = self._searcher.propose(line["trial"])
        if point is not None and point != line["point"]:
            raise TrialError(
                f"replaying the ledger must lead to the proposals in it: {line['trial']} was "
                f"{line['point']}, now {point}.",
                hint="Resume with the version of planner and optuna that started the run.",
            )


_KNOWN_ELSEWHERE: Final = frozenset({"trial", "config", "state", "reason", "num_workers",
                                     "elapsed_seconds", "device_hours", "usd", "kwh",
                                     "num_attempts", "point"})  # fmt: skip


def _not_finite(metrics: Mapping[str, Any]) -> str | None:
    for name in ("val_loss", "train_loss"):
        value = metrics.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            return name
    return None
