"""Bayesian and evolutionary search: an Optuna study of ours, asked and told. Loading this module loads optuna.

What Optuna is told is what search.md's measurements ask for: a point that cannot run, or ran out
of memory, is a broken constraint and not a failure; divergence is a bad observation; a failure of
infrastructure is never told; a stopped trial is told as pruned, with its losses by fidelity.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Final

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState as OptunaState
from pydantic import JsonValue

from planner.search_space import Distribution, Point
from planner.study import Study
from planner.trial import TrialState
from planner.tuning.searchers import Outcome

__all__ = ["OptunaSearcher"]

_FIDELITY_STEPS: Final = 1000
"""Optuna counts fidelity in whole steps; these make one of the whole trial."""
_MAX_REPEATS: Final = 10
"""Proposals that may repeat a point before the repetition is accepted."""
_NUM_STARTUP: Final = 10
"""Trials drawn at random before the model proposes; Optuna's own default."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


class OptunaSearcher:
    """Optuna's samplers over the study's space, seeded: TPE, CMA-ES or NSGA-II.

    `bayesian` is the tree-structured Parzen estimator, `cmaes` the covariance matrix adaptation,
    which knows numbers only and draws choices at random, `evolution` NSGA-II with a population of
    the square root of the trials. Each proposal has a sampler of its own, seeded by the study's seed and the proposal's number,
    so that the next proposal depends on what was told and on nothing else.

    Source: Watanabe 2023 (arXiv:2304.11127) for TPE, Hansen 2016 (arXiv:1604.00772) for CMA-ES, Deb
    et al. 2002 for NSGA-II; all as Optuna 5 implements them.
    """

    looks_ahead = False

    def __init__(self, study: Study) -> None:
        self._space, self._base = study.search_space, study.base
        self._seed = study.search.seed
        self._algorithm = study.search.algorithm
        self._population = max(4, round(math.sqrt(study.search.num_trials or 100)))
        self._distributions = {
            name: _distribution(each) for name, each in self._space.parameters.items()
        }
        self._study = optuna.create_study(direction="minimize")
        self._asked: dict[str, optuna.Trial] = {}
        self._step: dict[str, int] = {}
        self._worst = 0.0
        self._points: list[Point] = []
        self._num_asked = 0

    def propose(self, trial: str) -> Point | None:
        """Return the point that the model likes best, a new one where it can; None at the end."""
        if len(self._points) >= self._num_points:
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
        self._study.sampler = self._sampler(self._num_asked)
        self._num_asked += 1
        asked = self._study.ask()
        point: Point = {}
        for name, distribution in self._space.parameters.items():
            if self._space.holds(distribution.when, point, self._base):
                point[name] = _suggest(asked, name, distribution, self._distributions[name])
        return asked, point

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = (self._seed * 1_000_003 + number) % 2**32
        if self._algorithm == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if self._algorithm == "evolution":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=self._population)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=_NUM_STARTUP, group=self._has_conditions
            )

    @property
    def _num_points(self) -> float:
        """Points of the space, where it has an end."""
        sizes = [len(d.choice) if d.choice else math.inf for d in self._space.parameters.values()]
        return math.prod(sizes)

    @property
    def _has_conditions(self) -> bool:
        return any(each.when is not None for each in self._space.parameters.values())

    def report(self, trial: str, fidelity: float, loss: float) -> None:
        """Note the loss at a fidelity."""
        asked = self._asked.get(trial)
        step = round(fidelity * _FIDELITY_STEPS)
        if asked is not None and step > self._step.get(trial, 0):
            self._step[trial] = step
            asked.report(loss, step)

    def end(self, trial: str, outcome: Outcome) -> None:
        """Tell Optuna how a trial ended."""
        asked = self._asked.pop(trial, None)
        if asked is None:
            return
        if outcome.state in (TrialState.INFEASIBLE, TrialState.OUT_OF_MEMORY):
            self._constrain(asked, 1.0)
            self._study.tell(asked, self._bad())
        elif outcome.state is TrialState.DIVERGED:
            self._constrain(asked, 0.0)
            self._study.tell(asked, self._bad())
        elif outcome.loss is None:
            self._study.tell(asked, state=OptunaState.FAIL)
        else:
            self._constrain(asked, 0.0)
            self._worst = max(self._worst, outcome.loss)
            if outcome.state is TrialState.STOPPED:
                self._study.tell(asked, state=OptunaState.PRUNED)
            else:
                self._study.tell(asked, outcome.loss)

    def _constrain(self, asked: optuna.Trial, violation: float) -> None:
        """Say whether the point can run; CMA-ES knows no constraints, only bad losses."""
        if self._algorithm != "cmaes":
            asked.set_constraint("can run", violation)

    def _bad(self) -> float:
        """Return a loss that is worse than any that was seen, at an ordinary distance."""
        return self._worst + 1.0


def _numbers(distribution: Distribution) -> list[float]:
    """Return the values of a choice of three numbers or more: neighbours are alike; else none."""
    values = distribution.choice or ()
    found = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return found if len(found) == len(values) > 2 else []


def _ranked(distribution: Distribution) -> Sequence[JsonValue]:
    """Return the values of a choice in the order that its index counts."""
    return sorted(_numbers(distribution)) or distribution.choice or ()


def _distribution(distribution: Distribution) -> BaseDistribution:
    """Return Optuna's distribution; a choice is searched by the index of its value."""
    if distribution.choice is not None:
        last = len(distribution.choice) - 1
        if _numbers(distribution):
            return IntDistribution(0, last)
        return CategoricalDistribution(list(range(last + 1)))
    low, high, log = distribution.low, distribution.high, distribution.is_log
    if distribution.is_integer:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _suggest(
    asked: optuna.Trial, name: str, distribution: Distribution, theirs: BaseDistribution
) -> JsonValue:
    if isinstance(theirs, CategoricalDistribution):
        index = asked.suggest_categorical(name, list(range(len(theirs.choices))))
    elif isinstance(theirs, IntDistribution):
        index = asked.suggest_int(name, theirs.low, theirs.high, log=theirs.log)
    else:
        assert isinstance(theirs, FloatDistribution)  # noqa: S101 -- `_distribution` makes no other
        value = asked.suggest_float(name, theirs.low, theirs.high, log=theirs.log)
        return distribution.settle(value)
    if distribution.choice is None:
        return distribution.settle(float(index))
    return _ranked(distribution)[index]
