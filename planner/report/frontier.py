"""The envelope of a law over the sizes that can be built: the least loss at each compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from planner.costs import count_params, train_flops_per_token
from planner.recommendation.options import law_params
from planner.recommendation.shapes import ladder
from planner.recommendation.sizing import point_loss, predict, worth
from planner.report.contents import Contents
from planner.trial import TrialState

__all__ = ["Frontier", "frontier"]

Array = npt.NDArray[np.float64]

_NUM_POINTS: Final = 61
_NUM_SIZES: Final = 241
"""Sizes between the shapes: the envelope is that of the law, not of the rungs."""
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
    if law is None or not flops or not models or not law.needs_only_size_and_tokens:
        return None
    last = max([*flops, *([answer.choice.train_flops] if answer else [])])
    largest = max(count_params(model).total for model in models)
    if answer is not None:
        largest = max(largest, answer.choice.num_params)
    shapes = ladder(models, _LARGER * largest)
    compute = np.geomspace(min(flops) / _MARGIN, last * _MARGIN, _NUM_POINTS)
    known = np.unique(
        [(law_params(law, model), train_flops_per_token(model)) for model in shapes], axis=0
    )
    sizes = np.geomspace(known[0, 0], known[-1, 0], _NUM_SIZES)
    per_token = np.exp(np.interp(np.log(sizes), *np.log(known.T)))
    tokens = compute[:, None] / per_token[None, :]
    if answer is not None and answer.most_tokens_per_param is not None:
        tokens = np.minimum(tokens, answer.most_tokens_per_param * sizes[None, :])
    tokens = worth(tokens, answer.unique_tokens if answer is not None else None)
    level = answer.level if answer is not None else law.level
    shift = answer.size_shift if answer is not None else 1.0
    wide = np.broadcast_to(sizes, tokens.shape)
    losses = point_loss(law, wide / shift, tokens * shift)
    best = np.argmin(losses, axis=1)
    prediction = predict(
        law, sizes[best], tokens[np.arange(_NUM_POINTS), best], shift=shift, level=level,
        train_flops=compute,
    )  # fmt: skip
    return Frontier(
        train_flops=compute,
        loss=prediction.loss,
        loss_lower=prediction.loss_lower,
        loss_upper=prediction.loss_upper,
        level=level,
    )
