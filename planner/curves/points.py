"""The rows that a curve is fitted on, as float64 columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from planner.curves.arrays import BoolArray, FloatArray, IntArray, TextArray
from planner.curves.stable import StableLosses

__all__ = [
    "FLOPS_PER_PARAM_TOKEN",
    "OPTIONAL",
    "REQUIRED",
    "Points",
    "count_distinct",
]

FLOPS_PER_PARAM_TOKEN = 6.0
"""C = 6 N D, forward and backward of dense matmuls (Kaplan et al. 2020, section 2.1)."""

REQUIRED = ("num_params", "num_tokens", "loss")
OPTIONAL = (
    "train_flops",
    "unique_tokens",
    "learning_rate",
    "tokens_per_step",
    "sparsity_fraction",
    "weight_bits",
    "activation_bits",
    "post_training_bits",
    "num_params_non_embedding",
    "warmup_fraction",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Points:
    """Final losses of finished trainings, one row each; every array has shape (n,)."""

    num_params: FloatArray
    num_tokens: FloatArray
    loss: FloatArray
    """Nats per token."""
    train_flops: FloatArray | None = None
    """Training compute; absent means 6 N D."""
    unique_tokens: FloatArray | None = None
    """Distinct tokens in the training set; absent means no token was seen twice."""
    learning_rate: FloatArray | None = None
    tokens_per_step: FloatArray | None = None
    sparsity_fraction: FloatArray | None = None
    weight_bits: FloatArray | None = None
    activation_bits: FloatArray | None = None
    post_training_bits: FloatArray | None = None
    num_params_non_embedding: FloatArray | None = None
    warmup_fraction: FloatArray | None = None
    run: IntArray | None = None
    """Rows with one number share a training run and are resampled together."""
    schedule: TextArray | None = None
    """Name of the learning-rate schedule, in lower case; empty where it is not given."""
    stable: StableLosses | None = None
    """Losses during the trainings, for their envelope; absent where the table has none."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows of the table that are not here, by reason."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Which column of the table each quantity came from."""

    def __len__(self) -> int:
        return int(self.loss.size)

    @property
    def compute_flops(self) -> FloatArray:
        """Training FLOPs of each row: the column if given, else 6 N D."""
        if self.train_flops is not None:
            return self.train_flops
        return FLOPS_PER_PARAM_TOKEN * self.num_params * self.num_tokens

    @property
    def num_continued(self) -> int:
        """Rows that go on from another row's run."""
        return 0 if self.run is None else len(self) - np.unique(self.run).size

    def where(self, mask: BoolArray, *, reason: str | None = None) -> Points:
        """Return the rows where mask is true; with a reason the others are counted as dropped."""
        values: dict[str, Any] = {
            f.name: value[mask] if isinstance(value := getattr(self, f.name), np.ndarray) else value
            for f in fields(self)
        }
        num_out = int((~mask).sum())
        if reason is not None and num_out:
            values["dropped"] = {**self.dropped, reason: self.dropped.get(reason, 0) + num_out}
        return Points(**values)

    def covariates(self) -> dict[str, FloatArray]:
        """Return every numeric column that is present, by name."""
        return {
            name: value
            for name in (*REQUIRED[:2], *OPTIONAL)
            if (value := getattr(self, name)) is not None
        }


def count_distinct(values: FloatArray, tolerance: float = 0.02) -> int:
    """Return how many values there are when those within the relative tolerance count as one.

    >>> count_distinct(np.array([1e8, 1.01e8, 2e8]))
    2
    """
    logs = np.unique(np.log(values))
    num, place = 0, 0
    while place < logs.size:
        num += 1
        place = int(np.searchsorted(logs, logs[place] + tolerance, side="right"))
    return num
