"""Cost-aware search: one model of the results over configurations and compute.

Every report counts: curves are extrapolated to their ends (`extrapolation`), and a Gaussian process
joins the ends over configurations (`surrogate`), each with the uncertainty that its trial's compute
leaves. The next point is the one with the most expected improvement per device-hour, as the cost
model prices it and measured trials correct it. Points that the plan rejects are never proposed
while others are left; those that ran out of memory teach a second process where memory ends.
Before the first trial there are published laws for the learning rate and the batch (`priors`), and
trials of earlier studies.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.costs import resolve_cluster
from planner.planning import Candidate, candidate
from planner.search_space import Point
from planner.study import Study
from planner.tuning.candidates import Candidates, make_pool
from planner.tuning.corrections import CostCorrection
from planner.tuning.encoding import Encoder, key_of, position_of
from planner.tuning.model import ResultModel
from planner.tuning.priors import BATCH, LEARNING_RATE, LawPrior
from planner.tuning.searchers import Outcome
from planner.tuning.told import Told

__all__ = ["CostAwareSearcher"]

Array = NDArray[np.float64]
Price = Callable[[str, Point], Candidate]

_NUM_FIRST: Final = 10
"""Trials drawn evenly before the model chooses."""
_NUM_FIRST_LAW: Final = 4
"""The same where there is a law, around whose optimum they lie."""
_FIRST_OCTAVES: Final = 0.7
"""Standard deviation of their distances from the optimum."""
_EXPLORE: Final = 0.1
"""Share of proposals that are drawn at random, so that a wrong model cannot hide the optimum."""
_NUM_PRICED: Final = 8
"""Candidates of the highest score among which the cost decides."""
_MOST_PRICED: Final = 128
"""Candidates that are priced in search of those that can run."""
_MOST_DRAWS: Final = 8
"""Times that an unlisted space is drawn from in search of a point that can run."""
_EARLIER_VARIANCE: Final = 0.5
"""Variance of an earlier study's losses about this one's, in variances of theirs."""


class CostAwareSearcher:
    """Proposes what improves the objective most per unit of compute.

    Args:
        study: What to search.
        price: What tells the cost of a point, or why it cannot run; by default the cost model.
        earlier: Points and objectives (small is good) of finished trials of earlier studies.
        use_law: Whether to start from the published law where the space has its parameters.
    """

    looks_ahead = False

    def __init__(
        self,
        study: Study,
        *,
        price: Price | None = None,
        earlier: Sequence[tuple[Point, float]] = (),
        use_law: bool = True,
    ) -> None:
        self._study = study
        self._price = price or _cost_model(study)
        space = study.search_space
        self._encoder = Encoder(space)
        self._pool = make_pool(space, study.base, self._encoder)
        self._told = Told(self._encoder.num_columns)
        applies = use_law and study.first_objective.metric in ("val_loss", "train_loss")
        law = LawPrior(space.parameters, self._price)
        self._law = law if applies and law.names else None
        self._num_first = _NUM_FIRST_LAW if self._law else _NUM_FIRST
        self._model = ResultModel(self._told, self._law is not None, self._num_first)
        self._correction = CostCorrection(self._encoder.num_columns)
        self._points: list[Point] = []
        self._vectors: dict[str, Array] = {}
        self._num_proposals = 0
        self._num_earlier = len(earlier)
        self._take_over(earlier)

    # What the core asks and tells.

    def propose(self, trial: str) -> Point | None:
        """Return the next point, or None when a listed space has no other that can run."""
        number = self._num_proposals
        self._num_proposals += 1
        rng = np.random.default_rng([self._study.search.seed, number])
        near = [self._points[i] for i in self._model.best_rows().tolist()]
        for _ in range(_MOST_DRAWS):
            offered = self._pool.draw(rng, near)
            while offered is not None:
                offered = self._towards_law(offered, rng)
                scores = self._scores(offered, number, rng)
                chosen = self._choose(offered, scores)
                if chosen is not None:
                    return self._take(trial, offered.points[chosen], offered.vectors[chosen])
                if not self._pool.is_listed:
                    break
                offered = self._pool.draw(rng, near)
            else:
                return None
        return self._anything(trial, rng)

    def report(self, trial: str, fidelity: float, loss: float) -> None:
        """Hear of a trial under way."""
        self._told.report(trial, fidelity, loss)

    def end(self, trial: str, outcome: Outcome) -> None:
        """Hear how a trial ended."""
        self._told.end(trial, outcome)
        if outcome.cost_ratio is not None and trial in self._vectors:
            self._correction.add(self._vectors[trial], outcome.cost_ratio)

    # The choice.

    def _scores(self, offered: Candidates, number: int, rng: np.random.Generator) -> Array:
        """Return how good candidates are, before cost; at first, and now and then, at random."""
        known = number + self._num_earlier
        is_first = known < self._num_first or not self._model.refresh()
        if is_first and self._law is not None:
            shift = rng.normal(0.0, _FIRST_OCTAVES, 2) if number else np.zeros(2)
            away = self._distances(offered.points, (float(shift[0]), float(shift[1])))
            return 1.0 / (1.0 + away + 0.01 * rng.random(len(away)))
        if is_first or rng.random() < _EXPLORE:
            return rng.random(len(offered.vectors)) + self._model.is_safe(offered.vectors)
        return self._model.scores(offered.vectors, self._distances(offered.points))

    def _distances(self, points: Sequence[Point], shift: tuple[float, float] = (0.0, 0.0)) -> Array:
        if self._law is None:
            return np.zeros(len(points))
        return np.array([self._law.distance(point, shift) for point in points])

    def _choose(self, offered: Candidates, scores: Array) -> int | None:
        """Return the candidate with the highest score per device-hour, or None if none can run."""
        best, best_rate, found = None, -np.inf, 0
        for index in np.argsort(-scores, kind="stable")[:_MOST_PRICED].tolist():
            if found and scores[index] <= 0:
                break
            priced = self._price("candidate", offered.points[index])
            if not priced.is_feasible:
                self._pool.remove(offered.points[index])
                continue
            hours = priced.cost.device_hours if priced.cost else 1.0
            hours *= self._correction.factor(offered.vectors[index])
            rate = float(scores[index]) / max(hours, 1e-12)
            if rate > best_rate:
                best, best_rate = index, rate
            found += 1
            if found >= _NUM_PRICED:
                break
        return best

    def _towards_law(self, offered: Candidates, rng: np.random.Generator) -> Candidates:
        """Return the candidates of an unlisted space with every second one moved to the law."""
        if self._law is None or self._pool.is_listed:
            return offered
        points = [dict(point) for point in offered.points]
        for point in points[::2]:
            best = self._law.optimum(point)
            if best is None:
                continue
            for name, value in (
                (LEARNING_RATE, best.learning_rate),
                (BATCH, best.sequences_per_step),
            ):
                if name in self._law.names and name in point:
                    distribution = self._study.search_space.parameters[name]
                    moved = value * 2.0 ** float(rng.normal(0.0, 1.0))
                    point[name] = distribution.from_unit(position_of(distribution, moved))
        return Candidates(points=points, vectors=self._encoder.encode(points))

    def _take(self, trial: str, point: Point, vector: Array) -> Point:
        self._pool.remove(point)
        self._told.add(trial, vector, float(self._distances([point])[0]))
        self._points.append(dict(point))
        self._vectors[trial] = vector
        return dict(point)

    def _anything(self, trial: str, rng: np.random.Generator) -> Point | None:
        """Return a point that cannot run: the core rejects it, and says so when that goes on."""
        offered = self._pool.draw(rng, [])
        if offered is None:
            return None
        return self._take(trial, offered.points[0], offered.vectors[0])

    def _take_over(self, earlier: Sequence[tuple[Point, float]]) -> None:
        if not earlier:
            return
        losses = [loss for _, loss in earlier]
        variance = _EARLIER_VARIANCE * (statistics.pvariance(losses) or 1e-12)
        vectors = self._encoder.encode([point for point, _ in earlier])
        for (point, loss), vector in zip(earlier, vectors, strict=True):
            self._told.add_earlier(vector, float(self._distances([point])[0]), loss, variance)
            self._points.append(dict(point))


def _cost_model(study: Study) -> Price:
    cluster = resolve_cluster(study.cluster)
    known: dict[str, Candidate] = {}

    def price(trial: str, point: Point) -> Candidate:
        key = key_of(point)
        if key not in known:
            known[key] = candidate(study, cluster, trial, point)
        return known[key]

    return price
