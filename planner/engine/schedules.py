"""Learning-rate schedules as pure functions of training progress.

A schedule gives a factor in 0..1 on the peak learning rate. It depends on the share of the
training tokens that are done once the step is taken, and on nothing else, so resuming, changing
the batch or changing the layout in mid-training cannot get it wrong.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.trial import ScheduleConfig

__all__ = ["learning_rate_factor"]


def learning_rate_factor(schedule: ScheduleConfig, progress: float) -> float:
    """Return the learning rate as a share of its peak.

    Args:
        schedule: Shape, warm-up, decay and final value.
        progress: Share of the training done after this step, in 0..1.

    >>> from planner.trial import ScheduleConfig
    >>> cosine = ScheduleConfig(name="cosine", warmup_fraction=0.1, final_fraction=0.0)
    >>> [round(learning_rate_factor(cosine, p), 3) for p in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    warmup = schedule.warmup_fraction
    if progress < warmup:
        return progress / warmup
    final = schedule.final_fraction
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "wsd":
        start = 1.0 - schedule.decay_fraction
        if progress <= start:
            return 1.0
        return 1.0 - (1.0 - final) * (progress - start) / schedule.decay_fraction
    done = (progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0
    if schedule.name == "linear":
        return 1.0 - (1.0 - final) * done
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))
