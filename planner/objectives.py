"""What a study asks of its trials: objectives to improve, and constraints on what was measured."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from planner.config import Config
from planner.units import parse_quantity

__all__ = [
    "Metric",
    "MetricConstraint",
    "Objective",
    "Objectives",
    "costs_of",
    "violations_of",
]

Metric = Literal[
    "val_loss", "val_bits_per_byte", "val_accuracy", "train_loss", "tokens_per_second",
    "step_seconds", "train_seconds", "device_hours", "usd", "kwh", "peak_memory_bytes", "num_params", "num_params_non_embedding",
    "train_tokens", "train_flops", "mfu",
]  # fmt: skip
"""Columns of TrialResult, and `step_seconds`: `train_seconds` over `num_steps`."""

_CUMULATIVE: Final = frozenset(
    {"train_seconds", "device_hours", "usd", "kwh", "train_tokens", "train_flops"}
)
"""Metrics that grow in proportion to how far a trial has trained."""


_OF_A_STEP: Final = frozenset(
    {"tokens_per_second", "step_seconds", "peak_memory_bytes", "num_params",
     "num_params_non_embedding"}
)  # fmt: skip
"""Metrics that do not depend on how long a training is."""


class Objective(Config):
    """A metric and which way is better."""

    metric: Metric = "val_loss"
    """What is measured; `step_seconds` is `train_seconds` over the steps."""
    mode: Literal["min", "max"] = "min"
    """Whether smaller or larger is better."""

    def cost(self, value: float) -> float:
        """Return a value turned so that small is good."""
        return value if self.mode == "min" else -value


def _listed(value: object) -> object:
    """Return a lone objective as a list of one."""
    return value if isinstance(value, list | tuple) else (value,)


Objectives = Annotated[
    tuple[Objective, ...], BeforeValidator(_listed), Field(min_length=1, strict=False)
]
"""In a file: one mapping, or a list of them."""


def _quantity(value: object) -> object:
    return parse_quantity(value) if isinstance(value, str) else value


Amount = Annotated[float, BeforeValidator(_quantity)]
"""A number, or one with a unit of memory, time or count: `20 GiB`, `90 min`, `1.3B`."""


class MetricConstraint(Config):
    """Bounds of a metric that a trial must keep to count."""

    metric: Metric
    """What is measured."""
    max: Amount | None = None
    """Largest value, such as `20 GiB`."""
    min: Amount | None = None
    """Smallest value."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.max is None and self.min is None:
            raise ValueError("a constraint needs max, min or both")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(f"a constraint must have min <= max (got {self.min}, {self.max})")
        return self

    def violation(self, value: float) -> float:
        """Return by how much of its bound a value breaks it; 0 or less where it keeps it.

        >>> MetricConstraint(metric="usd", max=10.0).violation(15.0)
        0.5
        """
        over = [] if self.max is None else [(value - self.max) / (abs(self.max) or 1.0)]
        under = [] if self.min is None else [(self.min - value) / (abs(self.min) or 1.0)]
        return max(over + under)

    @property
    def is_of_a_step(self) -> bool:
        """Whether it binds a training of any length, such as the one that is recommended."""
        return self.metric in _OF_A_STEP

    def __str__(self) -> str:
        low = "" if self.min is None else f"{self.min:g} <= "
        return f"{low}{self.metric}" + ("" if self.max is None else f" <= {self.max:g}")


def costs_of(
    objectives: tuple[Objective, ...], row: Any, fidelity: float = 1.0
) -> tuple[float, ...] | None:
    """Return the objectives of a row of results, turned so that small is good, or None.

    Args:
        objectives: What is asked for.
        row: A TrialResult.
        fidelity: Share of its training that the trial has done, in (0, 1]: what grows with it is
            shown as it would be at the end.
    """
    found = []
    for objective in objectives:
        value = getattr(row, objective.metric)
        if value is None:
            return None
        share = fidelity if objective.metric in _CUMULATIVE else 1.0
        found.append(objective.cost(float(value) / share))
    return tuple(found)


def violations_of(constraints: tuple[MetricConstraint, ...], row: Any) -> tuple[float, ...]:
    """Return the violation of each constraint by a row of results; what is unknown breaks none."""
    values = [getattr(row, constraint.metric) for constraint in constraints]
    return tuple(
        0.0 if value is None else constraint.violation(float(value))
        for constraint, value in zip(constraints, values, strict=True)
    )
