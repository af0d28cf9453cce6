"""The envelope of a law over the shapes that can be built: the least loss at each compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from planner.costs import count_params, train_flops_per_token
from planner.recommendation.options import law_params
from planner.recommendation.shapes import ladder
from planner.recommendation.sizing import predict
from planner.report.contents import Contents
from planner.trial import TrialState

__all__ = ["Frontier", "frontier"]

Array = npt.NDArray[np.float64]

_NUM_POINTS: Final = 61
_MARGIN: Final = 1.6
"""Factor by which the envelope is drawn beyond the data and the budget."""
_LARGER: Final = 8.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frontier:
    """Least predicted loss at each compute, with its prediction interval; shape (points,)."""

    train_flops: Array
    loss: Array
    loss_lower: Array
    loss_upper: Array
    level: float


def frontier(contents: Contents) -> Frontier | None:
    """Return the envelope from the least compute of the trials to the budget, or None."""
    law, answer = contents.law, contents.recommendation
    flops = [
        trial.train_flops
        for trial in contents.with_state(TrialState.COMPLETED)
        if trial.train_flops
    ]
    models = list(dict.fromkeys(config.model for config in contents.configs.values()))
    if law is None or not flops or not models:
        return None
    last = max([*flops, *([answer.choice.train_flops] if answer else [])])
    largest = max(count_params(model).total for model in models)
    if answer is not None:
        largest = max(largest, answer.choice.num_params)
    shapes = ladder(models, _LARGER * largest)
    compute = np.geomspace(min(flops) / _MARGIN, last * _MARGIN, _NUM_POINTS)
    sizes = np.array([law_params(law, model) for model in shapes], float)
    per_token = np.array([train_flops_per_token(model) for model in shapes])
    tokens = compute[:, None] / per_token[None, :]
    level = answer.level if answer is not None else law.level
    shift = answer.size_shift if answer is not None else 1.0
    prediction = predict(
        law, sizes[None, :], tokens, shift=shift, level=level, train_flops=compute[:, None]
    )
    best = np.argmin(prediction.loss, axis=1)[:, None]

    def along(values: Array) -> Array:
        return np.asarray(np.take_along_axis(values, best, axis=1)[:, 0])

    return Frontier(
        train_flops=compute,
        loss=along(prediction.loss),
        loss_lower=along(prediction.loss_lower),
        loss_upper=along(prediction.loss_upper),
        level=level,
    )
