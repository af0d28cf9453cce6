"""What the search benchmark searches with and in, beside the tables: peers, a grid, layouts."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from planner.budget import Budget
from planner.costs import ClusterConfig, estimate, resolve_cluster
from planner.planning import Candidate
from planner.search_space import Distribution, Point, SearchSpace, merge
from planner.study import Objective, SearchConfig, Study
from planner.trial import TrialConfig, TrialState
from planner.tuning.records import Decision
from planner.tuning.searchers import Outcome, Searcher


class StockTpe:
    """Optuna's TPE with its defaults, told as Ray's OptunaSearch tells it."""

    looks_ahead = False

    def __init__(self, study: Study) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore")
        self._space = study.search_space
        sampler = optuna.samplers.TPESampler(seed=study.search.seed)
        self._study = optuna.create_study(sampler=sampler)
        self._failed = optuna.trial.TrialState.FAIL
        self._asked: dict[str, Any] = {}

    def propose(self, trial: str) -> Point:
        """Ask Optuna."""
        asked = self._asked[trial] = self._study.ask()
        return {
            name: asked.suggest_categorical(name, d.choice)
            if d.choice is not None
            else asked.suggest_float(name, d.low, d.high, log=d.is_log)
            for name, d in self._space.parameters.items()
        }

    def report(self, trial: str, fidelity: float, loss: float) -> None:
        """Tell nothing: stock TPE sees final values alone."""

    def end(self, trial: str, outcome: Outcome) -> None:
        """Tell the last value, or a failure."""
        if outcome.loss is None or outcome.state is TrialState.DIVERGED:
            self._study.tell(self._asked[trial], state=self._failed)
        else:
            self._study.tell(self._asked[trial], outcome.loss)


class StockAsha:
    """Ray's AsyncHyperBandScheduler, with its own rungs."""

    def __init__(self, num_points: int) -> None:
        from ray.tune.schedulers import ASHAScheduler

        self._scheduler = ASHAScheduler(
            time_attr="points", metric="loss", mode="min",
            max_t=num_points, grace_period=1, reduction_factor=3,
        )  # fmt: skip
        self._trials: dict[str, _RayTrial] = {}

    def rungs(self, planned_flops: float) -> tuple[float, ...]:
        """Return nothing: a table reports at every point."""
        return ()

    def report(
        self, trial: str, point: Any, planned_flops: float, flops: float, loss: float
    ) -> Decision:
        """Ask Ray."""
        if trial not in self._trials:
            self._trials[trial] = _RayTrial(trial)
            self._scheduler.on_trial_add(None, self._trials[trial])
        result = {"points": round(flops), "loss": loss}
        verdict = self._scheduler.on_trial_result(None, self._trials[trial], result)
        return Decision.STOP if verdict == "STOP" else Decision.CONTINUE


class _RayTrial:
    """As much of Ray's Trial as its scheduler looks at."""

    def __init__(self, name: str) -> None:
        self.trial_id = name


# Learning rate and batch on measured grids.


def grid_cells(path: Path) -> Iterator[tuple[int, int, dict[tuple[float, int], float]]]:
    """Yield parameters, tokens and {(learning rate, sequences per step): loss} of every cell."""
    table = pd.read_csv(path)
    table = table[np.isfinite(table["smooth loss"])]
    for (num_params, tokens), rows in table.groupby(["N", "D"]):
        losses = rows.groupby(["lr", "bs"])["smooth loss"].min()
        yield (
            int(num_params),
            int(tokens),
            {(float(a), int(b)): float(y) for (a, b), y in losses.items()},
        )


def looked_up(cell: dict[tuple[float, int], float]) -> Callable[[Point], float]:
    """Return what gives the loss of a point; the worst of the cell where none was measured."""
    worst = max(cell.values())
    return lambda point: cell.get(tuple(point.values()), worst)


def grid_study(cell: dict[tuple[float, int], float], seed: int) -> Study:
    """Return a study of one cell."""
    rates = tuple(sorted({rate for rate, _ in cell}))
    batches = tuple(sorted({batch for _, batch in cell}))
    space = SearchSpace(
        name="grid",
        parameters={
            "optimizer.learning_rate": Distribution(choice=rates),
            "batch.sequences_per_step": Distribution(choice=batches),
        },
    )
    return ask_tell_study(space, seed)


def grid_price(
    cell: dict[tuple[float, int], float], num_params: int, tokens: int
) -> Callable[[str, Point], Candidate]:
    """Return what tells a point of the cell; what was not measured cannot run."""
    base = {
        "model": {"num_layers": 1, "d_model": 32, "num_heads": 1, "sequence_length": 2048},
        "train": {"tokens": 2_048_000},
    }
    config = TrialConfig.model_validate(base)
    cost = estimate(config, resolve_cluster(ClusterConfig(device="cpu", devices_per_node=1)))
    cost = replace(cost, num_params_non_embedding=num_params, train_tokens=tokens)

    def price(trial: str, point: Point) -> Candidate:
        if tuple(point.values()) not in cell:
            return Candidate(trial=trial, point=point, reason="not in the table")
        shown = TrialConfig.model_validate(merge(base, point))
        return Candidate(trial=trial, point=point, config=shown, cost=cost)

    return price


# Parallel layouts, of which 57 % run out of memory.

LAYOUT = {
    "micro_batch": (1, 2, 4, 8, 16, 32, 64),
    "tensor": (1, 2, 4, 8),
    "pipeline": (1, 2, 4),
    "shard": (1, 2, 4, 8),
    "recompute": ("none", "selective", "full"),
}
_OUT_OF_MEMORY_FRACTION = 0.57


def layout_memory(point: Point) -> float:
    """Return made-up memory per device of a 7 B model: states plus activations, in GB."""
    p: Any = point
    states = 112.0 / (p["tensor"] * p["pipeline"] * p["shard"])
    kept = {"none": 1.0, "selective": 0.45, "full": 0.12}[p["recompute"]]
    return states + 6.0 * kept * p["micro_batch"] / p["tensor"]


def layout_slowness(point: Point) -> float:
    """Return made-up 1 / MFU: small micro-batches, splitting and recomputation cost time."""
    p: Any = point
    busy = p["micro_batch"] / (p["micro_batch"] + 1.5)
    split = 0.93 ** math.log2(p["tensor"]) * 0.95 ** math.log2(p["pipeline"])
    spread = 0.97 ** math.log2(p["shard"])
    again = {"none": 1.0, "selective": 0.94, "full": 0.77}[p["recompute"]]
    return 1.0 / (0.6 * busy * split * spread * again)


def layout_points() -> list[Point]:
    """Return the whole space."""
    return [dict(zip(LAYOUT, v, strict=True)) for v in itertools.product(*LAYOUT.values())]


def layout_limit() -> float:
    """Return the memory at which 57 % of the points run out of it."""
    return float(
        np.quantile([layout_memory(p) for p in layout_points()], 1 - _OUT_OF_MEMORY_FRACTION)
    )


def layout_study(seed: int) -> Study:
    """Return a study of the layouts."""
    parameters = {name: Distribution(choice=values) for name, values in LAYOUT.items()}
    return ask_tell_study(SearchSpace(name="layouts", parameters=parameters), seed)


def smooth_case(seed: int) -> tuple[Study, Callable[[Point], float]]:
    """Return a study of two intervals and a tilted bowl over them, whose least value is 0."""
    rng = np.random.default_rng(seed)
    best, widths = rng.random(2), rng.uniform(0.3, 1.5, 2)
    space = SearchSpace(
        name="bowl",
        parameters={
            "a": Distribution(loguniform=(1e-4, 1e-1)),
            "b": Distribution(uniform=(0.0, 1.0)),
        },
    )

    def value(point: Point) -> float:
        p: Any = point
        a, b = (math.log10(p["a"]) + 4) / 3 - best[0], p["b"] - best[1]
        return float(widths[0] * a * a + widths[1] * b * b + 0.5 * widths[0] * widths[1] * a * b)

    return ask_tell_study(space, seed), value


def free_price(trial: str, point: Point) -> Candidate:
    """Return a candidate that the plan has nothing against."""
    return Candidate(trial=trial, point=point)


def ask_tell_study(space: SearchSpace, seed: int) -> Study:
    """Return a study that is only asked and told, never run."""
    return Study.model_construct(
        name="asked", question="", search_space=space, base={}, objective=(Objective(),),
        search=SearchConfig(algorithm="random", num_trials=10_000, seed=seed),
        budget=Budget(seconds=1e9), cluster=ClusterConfig(device="cpu", devices_per_node=1),
        target=None, overrides=(),
    )  # fmt: skip


def ask_tell(
    searcher: Searcher, evaluate: Callable[[Point], float | None], num_trials: int
) -> list[float | None]:
    """Run trials one after the other; a loss of None is an out-of-memory."""
    losses: list[float | None] = []
    for number in range(num_trials):
        trial = f"t{number:03d}"
        point = searcher.propose(trial)
        if point is None:
            break
        loss = evaluate(point)
        state = TrialState.OUT_OF_MEMORY if loss is None else TrialState.COMPLETED
        fidelity = 0.0 if loss is None else 1.0
        if loss is not None:
            searcher.report(trial, 1.0, loss)
        searcher.end(trial, Outcome(state=state, loss=loss, fidelity=fidelity))
        losses.append(loss)
    return losses
