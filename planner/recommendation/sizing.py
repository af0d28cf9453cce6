"""The best size by all methods of the law, and the prediction centred on it.

Surface, IsoFLOP profiles and envelope err differently on the best size, so the law's allocation takes
all that there are.
The prediction used for ranking is the surface moved along equal compute, L(N / r, D r), by the one
ratio r that puts its optimum where the allocation is; the least loss at a compute stays what the
surface says, and only which size reaches it moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from planner.curves import Prediction, ScalingLaw, optimal_allocation
from planner.curves.points import FLOPS_PER_PARAM_TOKEN
from planner.curves.repeated import PUBLISHED_REPETITION, effective_tokens

__all__ = ["Sizing", "point_loss", "predict", "size_at", "worth"]

Array = npt.NDArray[np.float64]

_REACH: Final = 64.0
_NUM_POINTS: Final = 801
_FARTHEST: Final = 4.0
"""Surface and profiles that disagree by more leave the surface's optimum where it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizing:
    """The best size at one compute, counted as the law counts, with its interval."""

    num_params: float
    lower: float
    upper: float
    num_tokens: float
    """Best number of tokens at that compute."""
    shift: float
    """The allocation's best size over the surface's."""


def size_at(law: ScalingLaw, num_params: float, num_tokens: float, level: float) -> Sizing:
    """Return the best size at the compute of a training of this size and length."""
    compute = FLOPS_PER_PARAM_TOKEN * num_params * num_tokens
    best = optimal_allocation(law, compute, level=level)
    sizes = best.num_params * np.geomspace(1 / _REACH, _REACH, _NUM_POINTS)
    losses = point_loss(law, sizes, compute / FLOPS_PER_PARAM_TOKEN / sizes)
    least = int(np.argmin(losses))
    shift = best.num_params / float(sizes[least])
    if least in (0, _NUM_POINTS - 1) or not 1 / _FARTHEST <= shift <= _FARTHEST:
        shift = 1.0
    return Sizing(
        num_params=best.num_params,
        lower=best.num_params_lower,
        upper=best.num_params_upper,
        num_tokens=compute / FLOPS_PER_PARAM_TOKEN / best.num_params,
        shift=shift,
    )


def point_loss(law: ScalingLaw, num_params: Array, num_tokens: Array) -> Array:
    """Return the law's predicted loss without intervals, shape of the (equal) arguments."""
    columns = {"num_params": num_params.ravel(), "num_tokens": num_tokens.ravel()}
    total = sum(part.weight * part.log_loss(columns) for part in law.components)
    return np.asarray(np.exp(total)).reshape(num_params.shape)


def worth(num_tokens: Array, unique_tokens: float | None) -> Array:
    """Return the new tokens that as many seen ones are worth.

    With R_D* = 15.39 as published (Muennighoff et al. 2023, arXiv:2305.16264, equation 5).

    >>> worth(np.array([1e6, 4e6]), 1e6).round(-4).tolist()
    [1000000.0, 3730000.0]
    """
    if unique_tokens is None:
        return num_tokens
    return effective_tokens(num_tokens, unique_tokens, PUBLISHED_REPETITION[0])


def predict(
    law: ScalingLaw,
    num_params: ArrayLike,
    num_tokens: ArrayLike,
    *,
    shift: float,
    level: float,
    train_flops: ArrayLike,
) -> Prediction:
    """Return the law's prediction with its optimum moved by a ratio of sizes."""
    return law.predict(
        np.asarray(num_params, float) / shift,
        np.asarray(num_tokens, float) * shift,
        level=level,
        train_flops=train_flops,
    )
