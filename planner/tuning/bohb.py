"""BOHB: a model of the losses at one rung, the largest that enough trials have reached.

Loading this module loads optuna.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import optuna
from optuna.trial import TrialState as OptunaState

from planner.search_space import Point
from planner.study import Study
from planner.trial import TrialState
from planner.tuning.asking import CAN_RUN
from planner.tuning.samplers import sampler_of
from planner.tuning.searchers import Earlier, Outcome
from planner.tuning.translation import Translation

__all__ = ["BohbSearcher"]

_RANDOM_FRACTION: Final = 1 / 3
"""Share of the proposals that are drawn at random; the authors' default."""
_LOWEST: Final = -8
_SAME: Final = 1e-6
_MAX_REPEATS: Final = 10


class BohbSearcher:
    """Proposes by a Parzen estimator of the losses at one rung.

    Rungs of the model lie at powers of the scheduler's reduction factor in shares of a trial's
    compute. It is built on the largest that d + 3 trials have reached, d being the number of
    parameters, with the losses that they had there, those of trials that went on or were cut
    included; until then, and for a third of the proposals, points are drawn at random.

    Source: Falkner et al. 2018 (arXiv:1807.01774), algorithm 2, with Optuna's estimator.

    Args:
        study: What to search.
        earlier: Finished trials of earlier studies, taken as trials of this one.
    """

    looks_ahead = False

    def __init__(self, study: Study, earlier: Sequence[Earlier] = ()) -> None:
        self._theirs = study
        self._factor = study.search.scheduler.reduction_factor
        self._translation = Translation(study.search_space, study.base)
        self._num_needed = len(study.search_space.parameters) + 3
        self._points: dict[str, Point] = {}
        self._losses: dict[str, dict[int, float]] = {}
        self._impossible: dict[str, bool] = {}
        self._over: set[str] = set()
        self._num_asked = 0
        for i, each in enumerate(earlier):
            name = f"earlier {i}"
            self._points[name] = each.point
            self._losses[name] = {0: each.costs[0]}
            self._over.add(name)

    def propose(self, trial: str) -> Point | None:
        """Return the next point, a new one where it can; None where a finite space has no more."""
        if len(self._points) >= self._theirs.search_space.num_points:
            return None
        known = list(self._points.values())
        for _ in range(_MAX_REPEATS):
            point = self._ask()
            if point not in known:
                break
        self._points[trial] = point
        return dict(point)

    def _ask(self) -> Point:
        number = self._num_asked
        self._num_asked += 1
        level = self._level()
        rng = np.random.default_rng([self._theirs.search.seed, number])
        study = optuna.create_study()
        if level is None or rng.random() < _RANDOM_FRACTION:
            study.sampler = optuna.samplers.RandomSampler(seed=int(rng.integers(2**31)))
        else:
            study.sampler = sampler_of(self._theirs, "tpe", number)
            study.add_trials(self._seen(level))
        return self._translation.ask(study.ask())

    def _level(self) -> int | None:
        """Return the largest rung with enough losses, or None."""
        counts = [level for losses in self._losses.values() for level in losses]
        enough = [level for level in set(counts) if counts.count(level) >= self._num_needed]
        return max(enough, default=None)

    def _seen(self, level: int) -> list[optuna.trial.FrozenTrial]:
        """Return the trials as a study of the losses at one rung."""
        found = []
        worst = max(losses[level] for losses in self._losses.values() if level in losses)
        for trial, point in self._points.items():
            loss = self._losses.get(trial, {}).get(level)
            if trial in self._impossible:
                cannot = {CAN_RUN: float(self._impossible[trial])}
                found.append(self._translation.finished(point, [worst + 1.0], constraints=cannot))
            elif loss is not None:
                found.append(self._translation.finished(point, [loss], constraints={CAN_RUN: 0.0}))
            elif trial not in self._over:
                found.append(self._translation.finished(point, None, state=OptunaState.RUNNING))
        return found

    def report(self, trial: str, fidelity: float, loss: float) -> None:
        """Note the loss at the rung that a trial has come to."""
        if trial not in self._points or fidelity <= 0 or not math.isfinite(loss):
            return
        level = math.floor(math.log(fidelity * (1 + _SAME), self._factor))
        level = min(max(level, _LOWEST), 0)
        self._losses.setdefault(trial, {}).setdefault(level, loss)

    def end(self, trial: str, outcome: Outcome) -> None:
        """Hear how a trial ended."""
        self._over.add(trial)
        states = (TrialState.INFEASIBLE, TrialState.OUT_OF_MEMORY)
        if outcome.state in states or not outcome.is_allowed:
            self._impossible[trial] = True
        elif outcome.state is TrialState.DIVERGED:
            self._impossible[trial] = False
        elif outcome.state is TrialState.COMPLETED and outcome.loss is not None:
            self._losses.setdefault(trial, {})[0] = outcome.loss
