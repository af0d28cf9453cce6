"""Which losses during training can be compared over lengths: those at a constant learning rate.

Before the end of a decay a loss lies above what a training of that length would reach, so the
reports of a cosine say nothing of shorter trainings (Hoffmann et al. 2022, arXiv:2203.15556,
appendix B). At a constant rate nothing depends on the length, and one run stands for every shorter
one (Haegele et al. 2024, arXiv:2405.18392). Only such losses are kept; others are counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.curves.arrays import BoolArray, FloatArray, IntArray, TextArray
from planner.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from planner.trial import ScheduleConfig, TrialConfig

__all__ = [
    "CONSTANT",
    "NOT_CONSTANT",
    "NOT_TOLD",
    "StableLosses",
    "constant_span",
    "rows_by_schedule",
    "stable_losses_of_run",
]

CONSTANT = "constant"
AT_PEAK = 0.99
"""A rate above this share of its run's largest counts as not decayed."""

ONE_SIZE = 1.001
"""Sizes of one run agree to within this factor."""

REPORTED_LOSS = "val_loss"
COMPARED_STATES = ("completed", "stopped")
"""A trial that a scheduler stopped early was sound up to there."""

ROUNDING = 1e-9
"""Of a share of a training."""

NOT_CONSTANT = "not at a constant learning rate"
NOT_TOLD = "of runs whose schedule nothing tells (columns schedule, learning_rate)"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StableLosses:
    """Losses at a constant learning rate, one row per report; every array has shape (m,)."""

    train_flops: FloatArray
    """Compute of the run up to the report."""
    loss: FloatArray
    num_params: FloatArray
    run: IntArray
    """Rows with one number are reports of one run."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reports that are not here, by reason."""

    def __str__(self) -> str:
        """Return how many reports there are, and why the others are not among them."""
        out = ", ".join(f"{number} {why}" for why, number in self.dropped.items())
        used = f"{self.loss.size} reports of {np.unique(self.run).size} runs"
        return f"{used}; left out: {out or 'none'}"


def constant_span(schedule: ScheduleConfig) -> tuple[float, float] | None:
    """Return from which to which share of a training its rate is constant; None where it never is.

    >>> from planner.trial import ScheduleConfig
    >>> constant_span(ScheduleConfig(name="wsd", warmup_fraction=0.05, decay_fraction=0.2))
    (0.05, 0.8)
    >>> constant_span(ScheduleConfig(name="cosine")) is None
    True
    """
    if schedule.name not in ("constant", "wsd"):
        return None
    return schedule.warmup_fraction, schedule.stable_fraction


def stable_losses_of_run(
    trials: pd.DataFrame,
    reports: pd.DataFrame,
    columns: Mapping[str, str],
    copied: Collection[str] = (),
) -> StableLosses:
    """Return the reports of a sweep at a constant learning rate.

    Args:
        trials: One row per trial: trial, state, config and the column of sizes.
        reports: One row per report: trial, train_tokens, train_flops, val_loss.
        columns: Which column of `trials` each quantity comes from.
        copied: Trials of a population that went on from another's checkpoint.
    """
    reports = reports.drop_duplicates(["trial", "train_tokens"], keep="last")
    known = {str(row["trial"]): row for row in trials.to_dict("records")}
    dropped: Counter[str] = Counter()
    parts = [np.empty((0, 4))]
    for number, (name, mine) in enumerate(reports.groupby("trial", sort=False)):
        row = known.get(str(name), {})
        reason = "continue another trial" if name in copied else _reason(row, columns)
        config = None if reason else _config_of(row)
        if config is None:
            dropped[reason or "of a configuration that does not read"] += len(mine)
            continue
        flops, loss, is_constant = _constant_part(mine, config)
        dropped[NOT_CONSTANT] += int((~is_constant).sum())
        is_usable = np.isfinite(flops) & (flops > 0) & np.isfinite(loss) & (loss > 0)
        dropped["without loss or compute"] += int((is_constant & ~is_usable).sum())
        kept = is_constant & is_usable
        size = np.full(int(kept.sum()), float(row[columns["num_params"]]))
        parts.append(np.stack([flops[kept], loss[kept], size, np.full_like(size, number)], axis=1))
    flops, loss, sizes, runs = np.concatenate(parts).T
    return StableLosses(
        train_flops=flops,
        loss=loss,
        num_params=sizes,
        run=runs.astype(np.int64),
        dropped={why: number for why, number in dropped.items() if number},
    )


def _reason(trial: Mapping[Any, Any], columns: Mapping[str, str]) -> str:
    """Return why no report of a trial is used; empty where some may be."""
    import pandas as pd

    if columns["loss"] != REPORTED_LOSS:
        return f"of {REPORTED_LOSS}, while {columns['loss']} is fitted"
    state = str(trial.get("state")).rsplit(".", maxsplit=1)[-1].lower()
    if state not in COMPARED_STATES:
        return f"of trials whose state is {state}"
    return "without a size" if pd.isna(trial.get(columns["num_params"])) else ""


def _config_of(trial: Mapping[Any, Any]) -> TrialConfig | None:
    from planner.config import parse_config
    from planner.trial import TrialConfig

    try:
        return parse_config(json.loads(trial["config"]), TrialConfig)
    except (ConfigError, KeyError, TypeError, ValueError):
        return None


def _constant_part(
    reports: pd.DataFrame, config: TrialConfig
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Return compute, loss, and whether the rate was constant up to there, each of shape (k,)."""
    from planner.costs import num_train_tokens

    flops, loss, tokens = (
        reports[name].to_numpy(dtype=np.float64, na_value=np.nan)
        for name in ("train_flops", REPORTED_LOSS, "train_tokens")
    )
    low, high = constant_span(config.schedule) or (np.inf, -np.inf)
    progress = tokens / num_train_tokens(config)
    return flops, loss, (progress >= low * (1 - ROUNDING)) & (progress <= high * (1 + ROUNDING))


def rows_by_schedule(
    run: IntArray,
    num_params: FloatArray,
    num_tokens: FloatArray,
    *,
    learning_rate: FloatArray | None,
    schedule: TextArray | None,
) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Return which rows are at a constant rate, within a decaying run, and of a run that is not told.

    A run has one number, one size and several rows. What tells its schedule is a learning rate that
    moves along it, or its name. At a constant rate are the rows from the first at the largest
    rate to before the first one below it; within a decaying run are all rows but the last.

    Args:
        run: Number of the run, shape (n,).
        num_params: Size; a "run" of several sizes is none.
        num_tokens: Tokens up to the row.
        learning_rate: At the row; absent where the table has no such column.
        schedule: Its name, empty where it is not given; absent likewise.
    """
    order = np.lexsort((num_tokens, run))
    _, starts, which, counts = np.unique(
        run[order], return_index=True, return_inverse=True, return_counts=True
    )
    place = np.arange(run.size, dtype=np.float64)

    def least(values: FloatArray) -> FloatArray:
        return np.asarray(np.minimum.reduceat(values, starts)[which])

    def largest(values: FloatArray) -> FloatArray:
        return -least(-values)

    size = num_params[order]
    rate = np.ones(run.size) if learning_rate is None else learning_rate[order]
    rate = np.where(np.isnan(largest(rate)), 1.0, rate)
    at_peak = rate >= AT_PEAK * largest(rate)
    first = least(np.where(at_peak, place, np.inf))
    end = least(np.where(~at_peak & (place > first), place, np.inf))
    name = np.zeros(run.size, "U1") if schedule is None else schedule[order]
    named = name == CONSTANT
    moves = largest((~at_peak).astype(np.float64)) > 0
    is_run = (counts[which] > 1) & (largest(size) < ONE_SIZE * least(size))
    is_told = is_run & (moves | (name != ""))
    masks = (
        is_told & (moves | named) & at_peak & (place < end),
        is_told & ~named & (place < starts[which] + counts[which] - 1),
        is_run & ~is_told,
    )
    back = np.argsort(order)
    return masks[0][back], masks[1][back], masks[2][back]
