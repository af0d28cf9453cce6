"""What is known before the first trial: published laws for the learning rate and the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from planner.planning import Candidate
from planner.search_space import Point, is_number
from planner.tuning.encoding import key_of

__all__ = ["BATCH", "CURVATURE", "LEARNING_RATE", "LawPrior", "Optimum", "step_law"]

LEARNING_RATE: Final = "optimizer.learning_rate"
BATCH: Final = "batch.sequences_per_step"

_LEAVES_SIZE_ALONE: Final = (
    "optimizer.",
    "batch.",
    "schedule.",
    "layout.",
    "execution.",
    "precision.",
)
"""Settings that change neither the number of parameters nor that of tokens."""
CURVATURE: Final = 0.0015
"""Share of the loss that a factor of two away from the best learning rate costs, before any trial.
Within a factor of two of the optimum the measured grids of the law's authors lose 0.1 to 0.3 %."""
_BATCH_WEIGHT: Final = 0.5
"""The same for the batch, as a share of the learning rate's."""


def step_law(num_params: float, num_tokens: float) -> tuple[float, float]:
    """Return the best learning rate and the best batch in tokens per step.

    lr = 1.79 N^-0.713 D^0.307, B = 0.58 D^0.571, with N the parameters without embeddings and D the
    training tokens. Source: Li et al. 2025, "Predictable scale: Part I, Step Law"
    (arXiv:2503.04715), equation 1; fitted on 0.06-1 B parameters and 2-100 B tokens.

    >>> lr, batch = step_law(214663680, 100e9)
    >>> round(lr, 5), round(batch)
    (0.00489, 1107715)
    """
    N, D = num_params, num_tokens
    return 1.79 * N**-0.713 * D**0.307, 0.58 * D**0.571


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """What the law says is best for a size and a length."""

    learning_rate: float
    sequences_per_step: float


class LawPrior:
    """The published law at the points of a space.

    Args:
        parameters: Names of the space's parameters; the law speaks of `LEARNING_RATE` and `BATCH`.
        price: What tells a point's size and length.
    """

    def __init__(self, parameters: Iterable[str], price: Callable[[str, Point], Candidate]) -> None:
        names = set(parameters)
        self.names = [name for name in (LEARNING_RATE, BATCH) if name in names]
        self._price = price
        self._known: dict[str, Optimum | None] = {}

    def optimum(self, point: Point) -> Optimum | None:
        """Return the law's optimum for a point's size and length, or None where it has none."""
        shape = {k: v for k, v in point.items() if not k.startswith(_LEAVES_SIZE_ALONE)}
        key = key_of(shape)
        if key not in self._known:
            priced = self._price("prior", point)
            if priced.cost is None or priced.config is None:
                return None
            rate, tokens = step_law(
                float(max(priced.cost.num_params_non_embedding, 1)),
                float(max(priced.cost.train_tokens, 1)),
            )
            length = priced.config.model.sequence_length
            self._known[key] = Optimum(learning_rate=rate, sequences_per_step=tokens / length)
        return self._known[key]

    def distance(self, point: Point, shift: tuple[float, float] = (0.0, 0.0)) -> float:
        """Return the squared distance from the optimum in octaves, the batch weighing less.

        Args:
            point: Where.
            shift: Octaves by which to move the optimum first: learning rate, batch.
        """
        best = self.optimum(point)
        if best is None:
            return 0.0
        total = 0.0
        if LEARNING_RATE in self.names and LEARNING_RATE in point:
            total += (_octaves(point[LEARNING_RATE], best.learning_rate) - shift[0]) ** 2
        if BATCH in self.names and BATCH in point:
            gap = _octaves(point[BATCH], best.sequences_per_step) - shift[1]
            total += _BATCH_WEIGHT * gap**2
        return total


def _octaves(value: JsonValue, best: float) -> float:
    return math.log2(value / best) if is_number(value) and value > 0 else 0.0
