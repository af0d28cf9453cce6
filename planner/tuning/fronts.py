"""Several objectives: the trials that no other trial beats, and what they were worth as money went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.objectives import costs_of
from planner.results import Results

__all__ = ["Front", "front_of", "is_on_front"]

Array = NDArray[np.float64]

_MARGIN = 0.1
"""How far the reference point lies beyond the worst trial, in the spread of each objective."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """The Pareto front of a study, and its hypervolume as the study spent."""

    metrics: tuple[str, ...]
    modes: tuple[str, ...]
    trials: tuple[str, ...]
    """Trials on the front, the best first objective first."""
    values: tuple[tuple[float, ...], ...]
    """Objectives of these trials, as they were measured."""
    num_compared: int
    """Completed trials that keep the constraints and measured every objective."""
    reference_point: tuple[float, ...]
    """Values that count as worth nothing: a tenth of the spread beyond the worst trial's."""
    spent_device_hours: tuple[float, ...]
    """What the study had spent when each of these trials ended, rising."""
    hypervolume: tuple[float, ...]
    """Share of the box between the best values and the reference point that the trials up to then
    beat, in 0..1."""


def is_on_front(costs: Array) -> NDArray[np.bool_]:
    """Return which rows of costs [n, K] no other row beats: at least as good in all, better in one.

    >>> is_on_front(np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0]])).tolist()
    [True, True, False]
    """
    no_worse = (costs[None, :, :] <= costs[:, None, :]).all(2)
    better = (costs[None, :, :] < costs[:, None, :]).any(2)
    return ~np.any(no_worse & better, axis=1)


def front_of(results: Results) -> Front | None:
    """Return the front of a study of several objectives; None for one, or without trials."""
    objectives = results.study.objective
    if len(objectives) == 1:
        return None
    rows = [
        (trial.trial, found)
        for trial in results.completed()
        if (found := costs_of(objectives, trial)) is not None
    ]
    if not rows:
        return None
    names, costs = [name for name, _ in rows], np.array([each for _, each in rows])
    best, worst = costs.min(0), costs.max(0)
    reference = worst + _MARGIN * np.where(worst > best, worst - best, 1.0)
    signs = np.array([1.0 if each.mode == "min" else -1.0 for each in objectives])
    on_front = np.flatnonzero(is_on_front(costs))
    on_front = on_front[np.lexsort((costs[on_front, 1], costs[on_front, 0]))]
    spent, volumes = _history(results, names, (costs - best) / (reference - best))
    return Front(
        metrics=tuple(each.metric for each in objectives),
        modes=tuple(each.mode for each in objectives),
        trials=tuple(names[i] for i in on_front),
        values=tuple(tuple((costs[i] * signs).tolist()) for i in on_front),
        num_compared=len(names),
        reference_point=tuple((reference * signs).tolist()),
        spent_device_hours=spent,
        hypervolume=volumes,
    )


def _history(
    results: Results, names: list[str], scaled: Array
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (device-hours of the study, hypervolume) as its trials ended; costs scaled to 0..1."""
    from optuna._hypervolume import compute_hypervolume

    ends: dict[str, float] = {}
    for point in results.curves:
        if point.spent_device_hours is not None:
            ends[point.trial] = max(point.spent_device_hours, ends.get(point.trial, 0.0))
    order = sorted(
        (i for i in range(len(names)) if names[i] in ends), key=lambda i: (ends[names[i]], i)
    )
    ones = np.ones(scaled.shape[1])
    return (
        tuple(ends[names[i]] for i in order),
        tuple(float(compute_hypervolume(scaled[order[: k + 1]], ones)) for k in range(len(order))),
    )
