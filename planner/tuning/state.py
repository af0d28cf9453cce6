"""The state of a sweep: what the lines of a ledger, applied in order, say.

Nothing is decided here. The searcher and the scheduler hear of every line in its turn, which is what
rebuilds them when a ledger is replayed.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from planner.budget import Budget, Spend
from planner.config import parse_config
from planner.costs import Cluster
from planner.objectives import costs_of, violations_of
from planner.planning import proposals
from planner.results import Copy
from planner.study import Study
from planner.trial import TrialConfig, TrialState
from planner.tuning.accounts import Accounts
from planner.tuning.ledger import Line
from planner.tuning.lines import record_of
from planner.tuning.population import Population
from planner.tuning.records import MEASURED, Decision, TrialRecord
from planner.tuning.schedulers import Scheduler
from planner.tuning.searchers import Outcome, Searcher

__all__ = ["SweepState"]


_MOST_COUNTED: Final = 10_000
"""Points of a grid beyond which nobody counts."""


class SweepState:
    """What is known of a run.

    Args:
        study: What is run.
        cluster: What it runs on.
        num_devices: Devices to fill.
        searcher: Hears how trials do.
        scheduler: Hears how trials do; its answers are kept until they are carried out.
    """

    def __init__(
        self,
        study: Study,
        cluster: Cluster,
        num_devices: int,
        searcher: Searcher,
        scheduler: Scheduler,
    ) -> None:
        self.study, self.cluster, self.num_devices = study, cluster, num_devices
        self.accounts = Accounts(study.budget)
        self._first = study.first_objective
        self.trials: dict[str, TrialRecord] = {}
        self.reports: list[Line] = []
        """Every report, with what the study had spent by then."""
        self.num_changes = 0
        """Reports and ends of trials, after which checkpoints may be there to drop."""
        self.now = 0.0
        self.num_sessions = 0
        self.is_stopping = False
        """Nothing is started any more."""
        self.give_up: str | None = None
        """The failure for which the study gave up, if it did."""
        self.num_wanted = _num_wanted(study)
        """Trials that the study asks for; of a grid all its points, those included that cannot run."""
        self._searcher, self._scheduler = searcher, scheduler
        self._waiting: list[str] = []
        self._running: dict[str, TrialRecord] = {}
        self._num_rejected = 0
        self._held: set[str] = set()
        self._verdicts: dict[str, Decision] = {}
        """What the scheduler said of a trial, until it is carried out."""
        self._not_finite: dict[str, str] = {}
        """Which loss of a trial was not finite, until the trial has ended for it."""
        self._priced: dict[str, TrialConfig] = {}
        """Configurations that need not be read from the next line of their trial."""
        self.generation = 0
        """Times that a population has met."""
        self.copies: list[tuple[str, str]] = []
        """Checkpoints to copy before anything else starts: for which trial, from which."""

    @property
    def running(self) -> list[TrialRecord]:
        """Trials under way."""
        return list(self._running.values())

    @property
    def waiting(self) -> list[TrialRecord]:
        """Trials that were chosen and have not been started, in order."""
        return [self.trials[trial] for trial in self._waiting]

    def spend(self, now: float | None = None) -> Spend:
        """Return what has been burnt up to a time of the study's clock."""
        return self.accounts.spend(self.now if now is None else now)

    def loss(self, record: TrialRecord) -> float | None:
        """Return the first objective of a trial so far, turned so that small is good."""
        value = record.last.get(self._first.metric)
        if value is None and self._first.metric not in MEASURED:
            value = getattr(record.result(self.now), self._first.metric)
        return None if value is None else self._first.cost(float(value))

    def _outcome(self, record: TrialRecord, loss: float | None) -> Outcome:
        expected = record.expected_seconds() if record.attempts and record.flops else 0.0
        objectives, constraints = self.study.objective, self.study.constraints
        is_simple = len(objectives) == 1 and not constraints
        row = None if is_simple or not record.last else record.result(self.now)
        return Outcome(
            state=record.state,
            loss=loss,
            fidelity=record.fidelity,
            cost_ratio=record.elapsed_seconds(0.0) / expected if expected else None,
            costs=None if row is None else costs_of(objectives, row, record.fidelity or 1.0),
            violations=() if row is None else violations_of(constraints, row),
        )

    def apply(self, line: Line) -> None:
        """Change the state as one line of the ledger says."""
        self.now = max(self.now, float(line.get("t", 0.0)))
        handler = getattr(self, f"_on_{line['kind']}", None)
        if handler is not None:
            handler(line)

    def _on_session(self, line: Line) -> None:
        self.num_sessions += 1
        self.is_stopping = False
        gave_up, self.give_up = self.give_up is not None, None
        if line.get("added"):
            self.accounts.add(Budget(**line["added"]))
        is_spent = self.accounts.spent_field(self.now) is not None
        back = [
            r
            for r in self.trials.values()
            if r.is_running
            or (r.by_budget and not is_spent)
            or (gave_up and r.state is TrialState.FAILED)
        ]
        for record in back:
            self._leave_running(record)
            if record.state is TrialState.FAILED:
                record.num_failures = 0
            record.state, record.reason, record.by_budget = TrialState.PLANNED, None, False
        names = [record.trial for record in back]
        self._waiting = names + [trial for trial in self._waiting if trial not in names]

    def _on_proposed(self, line: Line) -> None:
        record = self._record_of(line)
        self.trials[record.trial] = record
        if record.state is TrialState.INFEASIBLE:
            self._num_rejected += 1
            self._searcher.end(record.trial, self._outcome(record, None))
        else:
            asked = self._scheduler.rungs(record.planned_flops)
            record.rungs = tuple(rung for rung in asked if rung <= record.comparable_flops)
            self._waiting.append(record.trial)

    def _on_started(self, line: Line) -> None:
        record = self.trials[line["trial"]]
        record.state = TrialState.RUNNING
        self._running[record.trial] = record
        self.accounts.open_attempt(record)
        position = self._waiting.index(record.trial)
        for trial in self._waiting[:position]:
            self.trials[trial].passed_over += 1
        self._waiting.pop(position)
        self.copies.clear()

    def _on_up(self, line: Line) -> None:
        record = self.trials[line["trial"]]
        if not record.lineage:
            self.accounts.found_checkpoint(record, float(line["flops"]))
        self.accounts.start_attempt(record, self.now, float(line["flops"]))

    def _on_report(self, line: Line) -> None:
        self.num_changes += 1
        record = self.trials[line["trial"]]
        metrics = line["metrics"]
        flops = float(metrics.get("train_flops") or 0.0)
        is_news = flops > record.flops
        self.accounts.advance(record, flops, self.now)
        spent = self.accounts.spent("device_hours", self.now)
        self.reports.append(line | {"spent_device_hours": spent})
        record.observe(metrics)
        if line.get("not_finite"):
            self._not_finite[record.trial] = line["not_finite"]
            return
        loss = self.loss(record)
        if not is_news or loss is None:
            return
        self._searcher.report(record.trial, record.fidelity, loss)
        if record.fidelity < 1.0 and flops <= record.comparable_flops:
            verdict = self._scheduler.report(
                record.trial, record.point, record.planned_flops, flops, loss
            )
            if verdict is not Decision.CONTINUE:
                self._verdicts[record.trial] = verdict

    def _on_ended(self, line: Line) -> None:
        self.num_changes += 1
        record = self.trials[line["trial"]]
        record.observe(line.get("metrics") or {})
        record.state = TrialState(line["state"])
        record.reason = line["reason"]
        record.by_budget = bool(line.get("by_budget"))
        self._verdicts.pop(record.trial, None)
        self._not_finite.pop(record.trial, None)
        self._held.discard(record.trial)
        if record.trial in self._waiting:
            self._waiting.remove(record.trial)
        if record.attempts and line.get("metrics"):
            self.accounts.advance(record, record.flops, self.now)
        self._leave_running(record)
        self.accounts.learn(record)
        if record.state is not TrialState.FAILED and not record.by_budget:
            self._searcher.end(record.trial, self._outcome(record, self.loss(record)))

    def _on_paused(self, line: Line) -> None:
        record = self.trials[line["trial"]]
        self._leave_running(record)
        record.state = TrialState.PLANNED
        self._verdicts.pop(record.trial, None)
        if record.trial in self._waiting:  # the driver died before it could pause it
            self._waiting.remove(record.trial)
        self._waiting.append(record.trial)
        self._held.add(record.trial)

    def _on_copied(self, line: Line) -> None:
        record, donor = self.trials[line["trial"]], self.trials[line["donor"]]
        new = self._record_of(line)
        record.lineage.append(
            Copy(
                trial=record.trial,
                donor=donor.trial,
                generation=self.generation + 1,
                train_flops=donor.flops,
                fidelity=donor.fidelity,
                study_seconds=self.now,
                loss=self.loss(record),
                donor_loss=self.loss(donor),
                changed={
                    name: [donor.point.get(name), value]
                    for name, value in new.point.items()
                    if donor.point.get(name) != value
                },
            )
        )
        record.copy(donor, new)
        self.copies.append((record.trial, donor.trial))
        if isinstance(self._scheduler, Population):
            self._scheduler.copied(record.trial, donor.trial, record.point)

    def _on_generation(self, line: Line) -> None:
        self.generation += 1
        self._held.clear()

    def _on_lost(self, line: Line) -> None:
        record = self.trials[line["trial"]]
        self._leave_running(record)
        record.state = TrialState.PLANNED
        record.num_failures += 1
        self._waiting.insert(0, record.trial)

    def _on_budget_spent(self, line: Line) -> None:
        self.is_stopping = True

    def _on_interrupted(self, line: Line) -> None:
        self.is_stopping = True

    def _on_gave_up(self, line: Line) -> None:
        self.is_stopping = True
        self.give_up = line["reason"]

    def _record_of(self, line: Line) -> TrialRecord:
        config = self._priced.pop(line["trial"], None)
        if line["reason"] or not line.get("config"):
            config = None
        elif config is None:
            config = parse_config(line["config"], TrialConfig, "proposed")
        return record_of(line, config)

    def _leave_running(self, record: TrialRecord) -> None:
        self._running.pop(record.trial, None)
        self.accounts.close_attempt(record, self.now)


def _num_wanted(study: Study) -> int | None:
    if study.search.num_trials is not None or study.search.algorithm != "grid":
        return study.search.num_trials
    return sum(1 for _ in islice(proposals(study), _MOST_COUNTED))
