"""The next trials: which affordable runs narrow the recommendation most.

The draws of a law are a sample of what may be true. A run at (N, D) would show log L there, up to
noise; its worth is how much of the spread of the best size and of the loss at the target moves
with it. Covariances over the whole sample are used, not one linearisation at the estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.curves.allocation import best_log_params
from planner.curves.anchored import tokens_per_param_weight
from planner.curves.arrays import BoolArray, FloatArray, IntArray
from planner.curves.checks import require_positive
from planner.curves.closed_forms import log_optimal_params
from planner.curves.diagnosis import TOKENS_PER_PARAM_BAND
from planner.curves.isoflop import size_of
from planner.curves.law import ScalingLaw
from planner.curves.points import FLOPS_PER_PARAM_TOKEN
from planner.errors import BudgetError

__all__ = ["SuggestedTrial", "Suggestion", "suggest"]

SIZE_FACTORS = tuple(2.0**k for k in (-3, -2, -1, 0, 1, 2, 3))
"""Sizes that are considered, relative to the best size at the compute of the trial."""

SMALLEST_SHARE = 0.02
"""Of the largest fitted compute: a run below it says nothing that the table does not."""

LEVELS = 6
"""Compute levels between the floor and the whole pilot budget."""

LOSS_SHARE = 0.5
"""Weight of the spread of the loss at the target; the rest is on the spread of the best size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestedTrial:
    """A run worth doing."""

    num_params: float
    num_tokens: float
    train_flops: float
    variance_reduction_fraction: float
    """Share of the remaining spread at the target that this run removes, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A design: runs that together narrow the recommendation at the target."""

    trials: tuple[SuggestedTrial, ...]
    target_flops: float
    pilot_flops: float
    """What the trials cost together."""
    size_deviation_before: float
    """Standard deviation of log N* at the target, as the law stands."""
    size_deviation_after: float
    loss_deviation_before: float
    """Standard deviation of log L at the target."""
    loss_deviation_after: float
    design: str
    """`greedy`, `thrifty`, `one-budget` or `ladder`: which family of designs won."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    num_params: FloatArray
    train_flops: FloatArray
    shown: FloatArray
    """log L of every draw at every candidate, shape (s, k), centred."""
    variance: FloatArray
    """Of the noise of log L there: the law is less true far from 20 tokens per parameter."""
    middles: tuple[int, ...]
    """The candidate at the best size of each level, from the smallest level up."""


def suggest(
    law: ScalingLaw, target_flops: float, pilot_budget_flops: float, num_trials: int = 5
) -> Suggestion:
    """Return the design of at most `num_trials` runs that narrows the recommendation most.

    Args:
        law: A law with a size-token trade-off.
        target_flops: The training to be planned.
        pilot_budget_flops: What all suggested trials may cost together.
        num_trials: At most so many.

    Raises:
        ConfigError: A quantity is not positive and finite.
        BudgetError: The pilot budget pays for no run that would say anything new.
        FitError: The form has no size-token trade-off.
    """
    require_positive(
        target_flops=target_flops, pilot_budget_flops=pilot_budget_flops, num_trials=num_trials
    )
    floor = SMALLEST_SHARE * law.fitted_range.train_flops[1]
    if pilot_budget_flops < floor:
        raise BudgetError(
            f"the pilot budget must pay for a run of at least {floor:.3g} FLOPs, "
            f"{100 * SMALLEST_SHARE:g} % of the largest in the fit: got {pilot_budget_flops:.3g}.",
            hint="Smaller runs say nothing that the table does not.",
        )
    wanted = _target_draws(law, target_flops)
    candidates = _candidates(law, floor, pilot_budget_flops)
    designs = {
        "greedy": _greedy(candidates, wanted, pilot_budget_flops, num_trials, 0.0),
        "thrifty": _greedy(candidates, wanted, pilot_budget_flops, num_trials, 0.5),
        "one-budget": _one_budget(candidates, wanted, pilot_budget_flops, num_trials),
        "ladder": _ladder(candidates, wanted, pilot_budget_flops, num_trials),
    }
    name = min(designs, key=lambda key: _remaining(candidates, wanted, designs[key]).sum())
    return _suggestion(law, candidates, wanted, designs[name], name, target_flops)


def _target_draws(law: ScalingLaw, target_flops: float) -> FloatArray:
    """Return (log N*, log L at the best size) of every draw, centred and weighted, shape (s, 2)."""
    center, _ = best_log_params(law, target_flops)
    parts = [log_optimal_params(c.draws[:n], target_flops) for c, n in law.shares_of_draws()]
    sizes = np.nan_to_num(np.concatenate(parts), nan=center)  # a draw without a best size
    sizes = np.clip(sizes, center - 5, center + 5)
    losses = law.log_loss_draws(_columns(size_of([center]), np.array([target_flops])))[:, 0]
    both = np.column_stack([sizes - sizes.mean(), losses - losses.mean()])
    return np.asarray(both)


def _columns(num_params: FloatArray, train_flops: FloatArray) -> dict[str, FloatArray]:
    tokens = train_flops / (FLOPS_PER_PARAM_TOKEN * num_params)
    return {"num_params": num_params, "num_tokens": tokens, "unique_tokens": tokens}


def _candidates(law: ScalingLaw, floor: float, pilot: float) -> _Candidates:
    levels = np.geomspace(floor, pilot, LEVELS)
    flops = np.repeat(levels, len(SIZE_FACTORS))
    best = size_of([best_log_params(law, float(c))[0] for c in levels])
    best = np.repeat(best, len(SIZE_FACTORS))
    sizes = best * np.tile(SIZE_FACTORS, LEVELS)
    ratio = flops / (FLOPS_PER_PARAM_TOKEN * sizes**2)
    low, high = TOKENS_PER_PARAM_BAND
    keep = ((ratio >= low) & (ratio <= high)) | (sizes == best)
    sizes, flops, best = sizes[keep], flops[keep], best[keep]
    weights = tokens_per_param_weight(ratio[keep])
    shown = law.log_loss_draws(_columns(sizes, flops))
    return _Candidates(
        num_params=sizes,
        train_flops=flops,
        shown=shown - shown.mean(axis=0),
        variance=law.noise**2 / weights,
        middles=tuple(int(i) for i in np.flatnonzero(sizes == best)),
    )


def _remaining(candidates: _Candidates, wanted: FloatArray, chosen: list[int]) -> FloatArray:
    """Return the share of variance of each wanted quantity left after the runs, weighted."""
    num = len(wanted)
    prior = (wanted**2).sum(axis=0) / num
    weights = np.array([1 - LOSS_SHARE, LOSS_SHARE])
    if not chosen:
        return weights
    shown = candidates.shown[:, chosen]
    inside = shown.T @ shown / num + np.diag(candidates.variance[chosen])
    across = shown.T @ wanted / num
    removed = np.einsum("kq,kq->q", across, np.linalg.solve(inside, across))
    return np.asarray(weights * np.maximum(prior - removed, 0.0) / np.maximum(prior, 1e-300))


def _greedy(
    candidates: _Candidates,
    wanted: FloatArray,
    pilot: float,
    num_trials: int,
    thrift: float,
) -> list[int]:
    """Add the run that removes most spread per FLOP^thrift, then the next, while money lasts."""
    chosen: list[int] = []
    left = pilot
    for _ in range(num_trials):
        now = _remaining(candidates, wanted, chosen).sum()
        affordable = _rows(candidates.train_flops <= left * (1 + 1e-9))
        if affordable.size == 0:
            break
        gains = np.array(
            [now - _remaining(candidates, wanted, [*chosen, int(i)]).sum() for i in affordable]
        )
        worth = gains / (candidates.train_flops[affordable] / pilot) ** thrift
        best = int(affordable[worth.argmax()])
        chosen.append(best)
        left -= float(candidates.train_flops[best])
    return chosen


def _rows(mask: BoolArray) -> IntArray:
    return np.flatnonzero(mask).astype(np.int64)


def _one_budget(
    candidates: _Candidates, wanted: FloatArray, pilot: float, num_trials: int
) -> list[int]:
    """Return the sizes, all at the largest level that pays for them, that remove most spread."""
    share = pilot / num_trials * (1 + 1e-9)
    levels = candidates.train_flops[candidates.train_flops <= share]
    if levels.size == 0:
        return []
    rows = _rows(candidates.train_flops == levels.max())
    return _best_subset(candidates, wanted, rows, num_trials)


def _ladder(
    candidates: _Candidates, wanted: FloatArray, pilot: float, num_trials: int
) -> list[int]:
    """Return one run at the best size of each level, from the largest that leaves money on."""
    chosen: list[int] = []
    left = pilot
    for row in reversed(candidates.middles):
        if candidates.train_flops[row] <= 0.5 * left * (1 + 1e-9) and len(chosen) < num_trials:
            chosen.append(row)
            left -= float(candidates.train_flops[row])
    return chosen


def _best_subset(
    candidates: _Candidates, wanted: FloatArray, rows: IntArray, num: int
) -> list[int]:
    chosen: list[int] = []
    for _ in range(num):
        scores = [_remaining(candidates, wanted, [*chosen, int(i)]).sum() for i in rows]
        chosen.append(int(rows[int(np.argmin(scores))]))
    return chosen


def _suggestion(
    law: ScalingLaw,
    candidates: _Candidates,
    wanted: FloatArray,
    chosen: list[int],
    design: str,
    target_flops: float,
) -> Suggestion:
    before = wanted.std(axis=0)
    trials = []
    spread = _remaining(candidates, wanted, []).sum()
    for i, row in enumerate(chosen):
        after = _remaining(candidates, wanted, chosen[: i + 1]).sum()
        size, flops = float(candidates.num_params[row]), float(candidates.train_flops[row])
        trials.append(
            SuggestedTrial(
                num_params=size,
                num_tokens=flops / (FLOPS_PER_PARAM_TOKEN * size),
                train_flops=flops,
                variance_reduction_fraction=float(1 - after / max(spread, 1e-300)),
            )
        )
        spread = after
    shares = _remaining(candidates, wanted, chosen) / np.array([1 - LOSS_SHARE, LOSS_SHARE])
    after_both = before * np.sqrt(shares)
    return Suggestion(
        trials=tuple(trials),
        target_flops=float(target_flops),
        pilot_flops=float(sum(t.train_flops for t in trials)),
        size_deviation_before=float(before[0]),
        size_deviation_after=float(after_both[0]),
        loss_deviation_before=float(before[1]),
        loss_deviation_after=float(after_both[1]),
        design=design,
    )
