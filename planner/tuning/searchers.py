"""Searchers: which point comes next. Loading this module does not load optuna.

A searcher is told everything in the ledger's order and draws its random numbers from the study's
seed and the number of the proposal, so replaying a ledger leads to the same next proposal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from planner.planning import proposals
from planner.search_space import Point
from planner.study import Study
from planner.trial import TrialState

__all__ = ["Earlier", "Outcome", "Proposals", "ReplayedSearcher", "Searcher", "make_searcher"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a trial ended, as a searcher needs it."""

    state: TrialState
    loss: float | None
    """The objective, turned so that small is good; None where it is not known."""
    fidelity: float
    """Share of its compute that it reached, in 0..1."""
    cost_ratio: float | None = None
    """Measured over estimated time of what it did; None where it did nothing."""
    costs: tuple[float, ...] | None = None
    """All objectives, turned so that small is good and as they would be at the trial's end; None
    where the study has one objective, or where they are not known."""
    violations: tuple[float, ...] = ()
    """By how much each constraint of the study is broken, in shares of its bound; 0 or less where
    it is kept, and nothing where the trial measured nothing."""

    @property
    def is_allowed(self) -> bool:
        """Whether it keeps the study's constraints, as far as is known."""
        return max(self.violations, default=0.0) <= 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Earlier:
    """A finished trial of an earlier study, as a point of this one's space."""

    point: Point
    costs: tuple[float, ...]
    """The objectives of this study, turned so that small is good."""


class Searcher(Protocol):
    """What the core asks of a searcher."""

    looks_ahead: bool
    """Whether proposals do not depend on results, so that several may be drawn in advance."""

    def propose(self, trial: str) -> Point | None:
        """Return the next point, or None when there is none left."""
        ...

    def report(self, trial: str, fidelity: float, loss: float) -> None:
        """Hear of a trial under way."""
        ...

    def end(self, trial: str, outcome: Outcome) -> None:
        """Hear how a trial ended; infeasible ones included, failed ones not."""
        ...


class Proposals:
    """Grid and quasi-random search: exactly the points that the plan shows, in its order."""

    looks_ahead = True

    def __init__(self, study: Study) -> None:
        self._points = proposals(study)

    def propose(self, trial: str) -> Point | None:
        """Return the next point of the list."""
        return next(self._points, None)

    def report(self, trial: str, fidelity: float, loss: float) -> None:
        """Learn nothing: the points are fixed."""

    def end(self, trial: str, outcome: Outcome) -> None:
        """Learn nothing: the points are fixed."""


class ReplayedSearcher:
    """Proposes nothing: for reading a ledger without going on with it."""

    looks_ahead = False

    def propose(self, trial: str) -> Point | None:
        """Return None."""
        return None

    def report(self, trial: str, fidelity: float, loss: float) -> None:
        """Learn nothing."""

    def end(self, trial: str, outcome: Outcome) -> None:
        """Learn nothing."""


def make_searcher(study: Study, earlier: Sequence[Earlier] = ()) -> Searcher:
    """Return the searcher that a study asks for.

    Args:
        study: What to search.
        earlier: Finished trials of the runs that `search.earlier` names.
    """
    found = _by_name(study, earlier)
    if study.search.stop_when == "never":
        return found
    from planner.tuning.stopping import StoppingSearcher

    return StoppingSearcher(found, study)


def _by_name(study: Study, earlier: Sequence[Earlier]) -> Searcher:
    if study.search.algorithm in ("grid", "random"):
        return Proposals(study)
    if study.search.algorithm == "cost_aware":
        from planner.tuning.cost_aware import CostAwareSearcher

        return CostAwareSearcher(study, earlier=[(each.point, each.costs[0]) for each in earlier])
    if study.search.scheduler.name == "bohb":
        from planner.tuning.bohb import BohbSearcher

        return BohbSearcher(study, earlier)
    from planner.tuning.asking import OptunaSearcher

    return OptunaSearcher(study, earlier)
