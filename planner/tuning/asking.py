"""Bayesian and evolutionary search: an Optuna study of ours, asked and told. Loading this module loads optuna.

What Optuna is told is what search.md's measurements ask for: a point that cannot run, or ran out
of memory, is a broken constraint and not a failure; divergence is a bad observation; a failure of
infrastructure is never told; a stopped trial is told as pruned, with its losses by fidelity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import optuna
from optuna.trial import TrialState as OptunaState

from planner.search_space import Point
from planner.study import Study
from planner.trial import TrialState
from planner.tuning.samplers import kind_of, sampler_of
from planner.tuning.searchers import Earlier, Outcome
from planner.tuning.translation import Translation

__all__ = ["CAN_RUN", "OptunaSearcher"]

CAN_RUN: Final = "can run"
"""Name of the constraint that a point without a place breaks."""
_FIDELITY_STEPS: Final = 1000
"""Optuna counts fidelity in whole steps; these make one of the whole trial."""
_MAX_REPEATS: Final = 10
"""Proposals that may repeat a point before the repetition is accepted."""


class OptunaSearcher:
    """Optuna's samplers over the study's space, seeded: TPE or GP, CMA-ES, NSGA-II (`samplers`).

    Each proposal has a sampler of its own, seeded by the study's seed and the proposal's number,
    so that the next proposal depends on what was told and on nothing else.

    With several objectives Optuna minimises all of them. It takes no reports then, so a trial that
    was cut is told as it would end if its loss stayed as it is: its costs grow with its compute.

    Args:
        study: What to search.
        earlier: Finished trials of earlier studies, taken as trials of this one.
    """

    looks_ahead = False

    def __init__(self, study: Study, earlier: Sequence[Earlier] = ()) -> None:
        self._theirs = study
        self._kind = kind_of(study)
        self._translation = Translation(study.search_space, study.base)
        self._num_objectives = len(study.objective)
        self._study = optuna.create_study(directions=["minimize"] * self._num_objectives)
        self._asked: dict[str, optuna.Trial] = {}
        self._step: dict[str, int] = {}
        self._worst: list[float] = []
        """Worst costs so far, objective by objective; empty before any are known."""
        self._unrated: list[tuple[optuna.Trial, Sequence[float]]] = []
        """Bad trials that wait for costs to be worse than."""
        self._points: list[Point] = []
        self._num_asked = 0
        constraints = {CAN_RUN: 0.0} | {str(c): 0.0 for c in study.constraints}
        for each in earlier:
            self._study.add_trial(
                self._translation.finished(each.point, each.costs, constraints=constraints)
            )
            self._learn(each.costs)

    def propose(self, trial: str) -> Point | None:
        """Return the point that the model likes best, a new one where it can; None at the end."""
        if len(self._points) >= self._theirs.search_space.num_points:
            return None
        for attempt in range(_MAX_REPEATS + 1):
            asked, point = self._ask()
            if point not in self._points or attempt == _MAX_REPEATS:
                break
            self._study.tell(asked, state=OptunaState.FAIL)
        self._asked[trial] = asked
        self._points.append(point)
        return point

    def _ask(self) -> tuple[optuna.Trial, Point]:
        self._study.sampler = sampler_of(self._theirs, self._kind, self._num_asked)
        self._num_asked += 1
        asked = self._study.ask()
        return asked, self._translation.ask(asked)

    def report(self, trial: str, fidelity: float, loss: float) -> None:
        """Note the loss at a fidelity."""
        asked = self._asked.get(trial)
        step = round(fidelity * _FIDELITY_STEPS)
        if asked is None or self._num_objectives > 1 or step <= self._step.get(trial, 0):
            return
        self._step[trial] = step
        asked.report(loss, step)

    def end(self, trial: str, outcome: Outcome) -> None:
        """Tell Optuna how a trial ended."""
        asked = self._asked.pop(trial, None)
        if asked is None:
            return
        costs = outcome.costs
        if costs is None and self._num_objectives == 1 and outcome.loss is not None:
            costs = (outcome.loss,)
        is_impossible = outcome.state in (TrialState.INFEASIBLE, TrialState.OUT_OF_MEMORY)
        if is_impossible and self._kind != "cmaes":
            self._tell_bad(asked, 1.0, outcome.violations)
        elif is_impossible or outcome.state is TrialState.DIVERGED:
            self._unrated.append((asked, outcome.violations))
        elif costs is None:
            self._study.tell(asked, state=OptunaState.FAIL)
        elif not outcome.is_allowed and self._kind == "cmaes":
            self._unrated.append((asked, outcome.violations))
        else:
            self._constrain(asked, 0.0, outcome.violations)
            self._learn(costs)
            if outcome.state is TrialState.STOPPED and self._num_objectives == 1:
                self._study.tell(asked, state=OptunaState.PRUNED)
            else:
                self._study.tell(asked, list(costs))
        if self._worst:
            for bad, violations in self._unrated:
                self._tell_bad(bad, 0.0, violations)
            self._unrated.clear()

    def _learn(self, costs: Sequence[float]) -> None:
        self._worst = [max(pair) for pair in zip(self._worst or costs, costs, strict=True)]

    def _tell_bad(
        self, asked: optuna.Trial, cannot_run: float, violations: Sequence[float]
    ) -> None:
        """Tell costs that are worse than any that were seen, at an ordinary distance."""
        self._constrain(asked, cannot_run, violations)
        worst = self._worst or [0.0] * self._num_objectives
        self._study.tell(asked, [cost + 1.0 for cost in worst])

    def _constrain(
        self, asked: optuna.Trial, cannot_run: float, violations: Sequence[float]
    ) -> None:
        """Say whether the point can run, and by how much it breaks each constraint of the study.

        CMA-ES knows no constraints, only bad losses. What was not measured breaks nothing, because
        samplers want the same constraints of every trial.
        """
        if self._kind == "cmaes":
            return
        asked.set_constraint(CAN_RUN, cannot_run)
        for i, constraint in enumerate(self._theirs.constraints):
            asked.set_constraint(str(constraint), violations[i] if violations else 0.0)
