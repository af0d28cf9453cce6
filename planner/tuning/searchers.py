"""Searchers: which point comes next. Loading this module does not load optuna.

A searcher is told everything in the ledger's order and draws its random numbers from the study's
seed and the number of the proposal, so replaying a ledger leads to the same next proposal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from planner.planning import proposals
from planner.search_space import Point
from planner.study import Study
from planner.trial import TrialState

__all__ = ["Outcome", "Proposals", "ReplayedSearcher", "Searcher", "make_searcher"]

MAX_REJECTIONS_PER_TRIAL: Final = 50
"""Proposals that may be rejected for each one that is wanted before the space counts as empty."""


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


def make_searcher(study: Study) -> Searcher:
    """Return the searcher that a study asks for."""
    if study.search.algorithm in ("grid", "random"):
        return Proposals(study)
    if study.search.algorithm == "cost_aware":
        from planner.tuning.cost_aware import CostAwareSearcher

        return CostAwareSearcher(study)
    from planner.tuning.asking import OptunaSearcher

    return OptunaSearcher(study)
