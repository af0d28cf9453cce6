"""Learning-rate schedules as pure functions of training progress.

A schedule gives a factor in 0..1 on the peak learning rate. It depends on the share of the
training tokens that are done once the step is taken, and on nothing else, so resuming, changing
the batch or changing the layout in mid-training cannot get it wrong.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from planner.trial import OptimizerConfig, ScheduleConfig, TrialConfig

_LEAST_WARMUP: Final = 0.01
"""Share of the training up to which the inverse square root stays at its peak."""

__all__ = ["learning_rate_factor", "scaled_learning_rate", "sequences_at"]


def learning_rate_factor(schedule: ScheduleConfig, progress: float) -> float:
    """Return the learning rate as a share of its peak.

    Args:
        schedule: Shape, warm-up, decay and final value.
        progress: Share of the training done after this step, in 0..1.

    Sources: cosine, Loshchilov and Hutter 2017 (equation 5, one cycle); inverse square root,
    Vaswani et al. 2017 (equation 3); cyclical, Smith 2017 (triangular); WSD, Hu et al. 2024.

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
    if schedule.name == "inverse-sqrt":
        return math.sqrt(max(warmup, _LEAST_WARMUP) / max(progress, _LEAST_WARMUP))
    if schedule.name == "wsd":
        start = 1.0 - schedule.decay_fraction
        if progress <= start:
            return 1.0
        return 1.0 - (1.0 - final) * (progress - start) / schedule.decay_fraction
    done = (progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0
    if schedule.name == "linear":
        return 1.0 - (1.0 - final) * done
    if schedule.name == "step":
        drops = min(int(done * (schedule.num_drops + 1)), schedule.num_drops)
        return schedule.drop_factor**drops
    if schedule.name == "cyclical":
        return 1.0 - (1.0 - final) * _triangle(done * schedule.num_cycles)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))


def _triangle(cycles: float) -> float:
    """Return the triangle wave that is 0 at whole numbers and 1 halfway between them."""
    return 1.0 - abs(2.0 * (cycles % 1.0) - 1.0)


def scaled_learning_rate(optimizer: OptimizerConfig, sequences_per_step: int) -> float:
    """Return the peak learning rate for a batch: linear (Goyal et al. 2017), square root, or as is.

    >>> from planner.trial import OptimizerConfig
    >>> scaled_learning_rate(OptimizerConfig(learning_rate=0.001, batch_scaling="sqrt"), 64)
    0.002
    """
    ratio = sequences_per_step / optimizer.base_sequences_per_step
    power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[optimizer.batch_scaling]
    return optimizer.learning_rate * ratio**power


def sequences_at(config: TrialConfig, progress: float) -> int:
    """Return the sequences of a step that begins at a share of the training, in 0..1.

    The ramp is linear in the tokens seen, in whole micro-batches of every worker.
    """
    batch = config.batch
    start, end = batch.ramp_start_sequences, batch.sequences_per_step
    if start is None or progress >= batch.ramp_fraction:
        return end
    unit = config.micro_batch_sequences * config.layout.data_shards
    wanted = start + (end - start) * progress / batch.ramp_fraction
    return min(end, max(1, round(wanted / unit)) * unit)
