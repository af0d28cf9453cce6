"""When to stop searching: what another trial is expected to gain against what it costs.

Both sides are in nats. The gain is the expected improvement of the best loss under a Gaussian
process of the completed trials. The cost is what the trial's compute would gain if it were spent on
training the final model longer, by the published slope of loss in compute.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.costs import resolve_cluster
from planner.planning import candidate, charge
from planner.results import Results
from planner.search_space import Point, quasi_random_points
from planner.study import Study
from planner.trial import TrialState
from planner.tuning.encoding import Encoder, finite_points, key_of
from planner.tuning.searchers import Outcome, Searcher
from planner.tuning.surrogate import GaussianProcess, Hyperparameters, expected_improvement
from planner.tuning.warm_start import point_of

__all__ = ["ExpectedGain", "StoppingSearcher", "expected_gain", "gain_of", "worth_of_compute"]

Array = NDArray[np.float64]

_COMPUTE_EXPONENT: Final = 0.050
_LEAST_TRIALS: Final = 10
_NUM_CANDIDATES: Final = 512
_MOST_OBSERVED: Final = 120
"""The best trials, to which the process is fitted."""
_BAD_QUANTILE: Final = 0.75
"""Losses above it are all alike."""
_IN_A_ROW: Final = 3
"""Completed trials after each of which the rule must hold before the search stops."""
_FIELDS: Final = ("flops", "device_hours", "usd", "kwh")


def worth_of_compute(loss: float, share: float) -> float:
    """Return by how many nats a share of its compute, added to a training, lowers its loss.

    -dL = alpha L dC / C, from L ~ C^-alpha with alpha = 0.050. L in nats per token, dC / C the share.
    Source: Kaplan et al. 2020 (arXiv:2001.08361), equation 1.3. Laws with an irreducible loss fall
    as steeply at small compute and less steeply at large, so this is the upper side.

    >>> round(worth_of_compute(3.0, 0.01), 5)
    0.0015
    """
    return _COMPUTE_EXPONENT * loss * share


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedGain:
    """What another trial is expected to bring, and what it costs."""

    gain: float
    """Expected fall of the best loss, in nats per token."""
    worth: float
    """Nats per token that the trial's compute would gain in the final training."""
    cost_share: float
    """A trial's mean cost as a share of the budget that the recommendation is for."""
    num_trials: int
    """Completed trials behind it."""

    @property
    def is_worth_it(self) -> bool:
        """Whether to go on."""
        return self.gain >= self.worth

    def __str__(self) -> str:
        advice = "going on pays" if self.is_worth_it else "stopping here pays"
        return (
            f"another trial is expected to gain {self.gain:.2g} nats, and its compute would gain "
            f"{self.worth:.2g} in the final training: {advice} (by {self.num_trials} trials)"
        )


def gain_of(results: Results) -> ExpectedGain | None:
    """Return what another trial of a run would bring; None where that cannot be said.

    It can for one objective that is a loss, after ten completed trials that keep the constraints.
    """
    study = results.study
    rows = [
        (point, float(loss), share)
        for trial in results.completed()
        if (point := point_of(study, trial)) is not None
        and (loss := getattr(trial, study.first_objective.metric)) is not None
        and (share := _share(study, {
            "flops": trial.train_flops, "device_hours": trial.device_hours, "usd": trial.usd,
            "kwh": trial.kwh,
        })) is not None
    ]  # fmt: skip
    if not rows:
        return None
    points, losses, shares = zip(*rows, strict=True)
    return expected_gain(study, points, losses, float(np.mean(shares)))


def _share(study: Study, amounts: dict[str, float | None]) -> float | None:
    """Return a trial's cost as a share of the target, by the limit that it takes most of."""
    limits = study.target_budget.limits()
    shares = [
        amount / limits[name] for name in _FIELDS if name in limits and (amount := amounts[name])
    ]
    return max(shares, default=None)


def expected_gain(
    study: Study, points: Sequence[Point], losses: Sequence[float], cost_share: float
) -> ExpectedGain | None:
    """Return what another trial would bring, given completed ones; None where that cannot be said.

    A searcher that learns is credited with the best candidate, another with the mean candidate.
    """
    is_loss = study.first_objective.metric in ("val_loss", "train_loss")
    if len(study.objective) > 1 or not is_loss or len(losses) < _LEAST_TRIALS:
        return None
    rows = np.argsort(losses, kind="stable")[:_MOST_OBSERVED]
    values = np.array(losses, dtype=float)[rows]
    values = np.minimum(values, np.quantile(values, _BAD_QUANTILE))
    centre, spread = float(values.mean()), float(values.std())
    if not spread:
        return None
    encoder = Encoder(study.search_space)
    inputs = encoder.encode([points[i] for i in rows.tolist()])
    targets, nothing = (values - centre) / spread, np.zeros(len(values))
    found = GaussianProcess.fit(
        inputs, targets, nothing, Hyperparameters.prior(encoder.num_columns)
    )
    process = GaussianProcess(inputs, targets, nothing, found)
    offered = _candidates(study, {key_of(point) for point in points})
    if not offered:
        gain = 0.0
    else:
        mean, deviation = process.predict(encoder.encode(offered))
        best = float(process.mean(inputs).min())
        gains = expected_improvement(mean, deviation, best)
        learns = study.search.algorithm not in ("grid", "random")
        gain = spread * float(gains.max() if learns else gains.mean())
    return ExpectedGain(
        gain=gain,
        worth=worth_of_compute(min(losses), cost_share),
        cost_share=cost_share,
        num_trials=len(losses),
    )


def _candidates(study: Study, done: set[str]) -> list[Point]:
    """Return points of the space that have not run."""
    listed = finite_points(study.search_space, study.base, _NUM_CANDIDATES)
    drawn = quasi_random_points(study.search_space, study.base, study.search.seed)
    offered = itertools.islice(drawn, _NUM_CANDIDATES) if listed is None else listed
    return [point for point in offered if key_of(point) not in done]


class StoppingSearcher:
    """A searcher that proposes nothing more once further trials are not worth their cost.

    Args:
        inner: What proposes.
        study: What is searched.
    """

    def __init__(self, inner: Searcher, study: Study) -> None:
        self._inner, self._study = inner, study
        self._cluster = resolve_cluster(study.cluster)
        self.looks_ahead = inner.looks_ahead
        self._points: dict[str, Point] = {}
        self._completed: list[tuple[Point, float]] = []
        self._shares: list[float] = []
        self._num_held = 0

    def propose(self, trial: str) -> Point | None:
        """Return the next point, or None when the rule has held three times in a row."""
        if self._num_held >= _IN_A_ROW:
            return None
        point = self._inner.propose(trial)
        if point is not None:
            self._points[trial] = dict(point)
        return point

    def report(self, trial: str, fidelity: float, loss: float) -> None:
        """Pass it on."""
        self._inner.report(trial, fidelity, loss)

    def end(self, trial: str, outcome: Outcome) -> None:
        """Pass it on, and ask again whether to go on."""
        self._inner.end(trial, outcome)
        is_news = outcome.state is TrialState.COMPLETED and outcome.is_allowed
        if not is_news or outcome.loss is None or trial not in self._points:
            return
        point = self._points[trial]
        cost = candidate(self._study, self._cluster, trial, point).cost
        if cost is None:
            return
        planned = charge(cost)
        share = _share(self._study, {name: getattr(planned, name) for name in _FIELDS})
        if share is None:
            return
        self._completed.append((point, outcome.loss))
        self._shares.append(share * (outcome.cost_ratio or 1.0))
        points, losses = zip(*self._completed, strict=True)
        found = expected_gain(self._study, points, losses, float(np.mean(self._shares)))
        is_over = found is not None and not found.is_worth_it
        self._num_held = self._num_held + 1 if is_over else 0
