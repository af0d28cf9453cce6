"""Run folders with trials whose losses follow a known law."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.budget import Budget, Spend
from planner.config import parse_config
from planner.costs import estimate, resolve_cluster
from planner.curves import ScalingLaw, fit
from planner.results import CurvePoint, Results, read_results
from planner.run_folder import RunFolder
from planner.study import Study, trial_config
from planner.trial import TrialConfig, TrialResult, TrialState

SHAPES = [
    {"num_layers": 2, "d_model": 32, "num_heads": 2},
    {"num_layers": 3, "d_model": 48, "num_heads": 3},
    {"num_layers": 4, "d_model": 64, "num_heads": 4},
    {"num_layers": 4, "d_model": 96, "num_heads": 6},
    {"num_layers": 8, "d_model": 192, "num_heads": 12},
]
TOKENS = [262_144, 1_048_576, 4_194_304]
RATES = [1e-3, 3e-3, 4e-3, 5.3e-3, 1.6e-2]
BEST_RATE = 4e-3
LAW = {"E": 1.2, "A": 14.0, "B": 60.0, "alpha": 0.3, "beta": 0.3}
FLOPS_PER_SECOND = 2e10
"""Of every synthetic worker, whatever its model."""


def true_loss(num_params: float, num_tokens: float, rate: float = BEST_RATE) -> float:
    """Return the loss of the law that the synthetic trials follow, times a parabola in log rate."""
    law = LAW["E"] + LAW["A"] / num_params ** LAW["alpha"] + LAW["B"] / num_tokens ** LAW["beta"]
    return law * (1 + 0.03 * math.log(rate / BEST_RATE) ** 2)


def make_study(name: str = "synthetic", **changes: Any) -> Study:
    """Return a study over shapes, tokens and learning rates on a CPU."""
    data: dict[str, Any] = {
        "name": name,
        "question": "Which size is worth training?",
        "search_space": {
            "name": "sizes",
            "parameters": {
                "model": {"choice": SHAPES},
                "train.tokens": {"choice": TOKENS},
                "optimizer.learning_rate": {"choice": RATES},
            },
        },
        "base": {"model": {"sequence_length": 128}, "batch": {"sequences_per_step": 16}},
        "search": {"algorithm": "random", "num_trials": 24, "scheduler": {"name": "asha"}},
        "budget": {"device_hours": 2.0},
        "cluster": {"device": "cpu", "devices_per_node": 2, "usd_per_device_hour": 0.05,
                    "device_overrides": {"power_watts": 10.0}},
    }  # fmt: skip
    return parse_config(data | changes, Study)


@dataclass
class _Clock:
    """What a sequential sweep has spent so far."""

    seconds: float = 0.0
    device_hours: float = 0.0


def _finished(
    study: Study, name: str, config: TrialConfig, loss: float, share: float, clock: _Clock
) -> tuple[TrialResult, list[CurvePoint]]:
    """Return a trial that ran a share of its length, and its reports."""
    cost = estimate(config, resolve_cluster(study.cluster))
    tokens = round(cost.num_steps * share) * config.tokens_per_step
    seconds = 3.0 + cost.train_flops * share / FLOPS_PER_SECOND
    points = []
    for part in np.linspace(0.2, 1.0, 5):
        at = max(tokens * float(part), 1.0)
        points.append(
            CurvePoint(
                trial=name, attempt=1, num_steps=round(cost.num_steps * share * part),
                train_tokens=round(at), train_flops=cost.train_flops * share * float(part),
                val_loss=loss * true_loss(cost.num_params, at) / true_loss(cost.num_params, tokens),
                train_loss=loss,
                learning_rate=config.optimizer.learning_rate,
                elapsed_seconds=seconds * float(part),
                study_seconds=clock.seconds + seconds * float(part),
                spent_device_hours=clock.device_hours + seconds * float(part) / 3600,
            )
        )  # fmt: skip
    clock.seconds += seconds
    clock.device_hours += seconds / 3600
    result = TrialResult(
        trial=name, config=config.model_dump(mode="json"),
        state=TrialState.COMPLETED if share == 1.0 else TrialState.STOPPED,
        reason=None if share == 1.0 else "worse than half of its rung",
        num_workers=config.layout.num_workers, num_params=cost.num_params,
        num_params_non_embedding=cost.num_params_non_embedding, train_tokens=tokens,
        train_flops=cost.train_flops * share, num_steps=tokens // config.tokens_per_step,
        val_loss=loss, train_loss=loss,
        tokens_per_second=FLOPS_PER_SECOND / cost.train_flops_per_token,
        mfu=0.3, train_seconds=seconds, elapsed_seconds=seconds, device_hours=seconds / 3600,
        usd=seconds / 3600 * 0.05, kwh=seconds / 3600 * 0.01, peak_memory_bytes=3e8,
        metrics={"unigram_entropy": 3.21, "unique_tokens": 2e7},
    )  # fmt: skip
    return result, points


def make_run(
    root: Path, study: Study | None = None, *, noise: float = 0.003, seed: int = 0
) -> RunFolder:
    """Write the run folder of a sweep: every shape and length at one or two learning rates."""
    study = study or make_study()
    generator = np.random.default_rng(seed)
    folder = RunFolder.create(study, root=root)
    trials, curves, clock = [], [], _Clock()
    shapes = study.search_space.parameters["model"].choice or ()
    lengths = study.search_space.parameters["train.tokens"].choice or ()
    points = [(m, t) for m in shapes for t in lengths]
    for number, (model, tokens) in enumerate([*points, *points[::2]]):
        rate = RATES[1:4][number % 3] if number < len(points) else RATES[-1 if number % 2 else 0]
        config = trial_config(
            study,
            {"model": model, "train.tokens": tokens, "optimizer.learning_rate": rate},
        )
        cost = estimate(config, resolve_cluster(study.cluster))
        loss = true_loss(cost.num_params, tokens, rate) * math.exp(noise * generator.normal())
        share = 0.4 if number >= len(points) and number % 3 == 0 else 1.0
        result, reports = _finished(study, f"t{number:03d}", config, loss, share, clock)
        trials.append(result)
        curves += reports
    trials.append(_failed(trials[0], "t900", TrialState.DIVERGED, "loss 9.1 is 3x the first one"))
    trials.append(_failed(trials[1], "t901", TrialState.FAILED, "<b>worker</b> died: signal 9"))
    spend = Spend(
        flops=sum(t.train_flops or 0.0 for t in trials), device_hours=clock.device_hours + 0.01,
        usd=0.05 * clock.device_hours, seconds=clock.seconds, kwh=0.01 * clock.device_hours,
    )  # fmt: skip
    Results(
        study=study, trials=tuple(trials), curves=tuple(curves), spend=spend, folder=folder
    ).write()
    return folder


def _failed(like: TrialResult, name: str, state: TrialState, reason: str) -> TrialResult:
    return TrialResult(
        trial=name, config=like.config, state=state, reason=reason, num_params=like.num_params,
        num_params_non_embedding=like.num_params_non_embedding, device_hours=0.005,
    )  # fmt: skip


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return the folder of one synthetic sweep."""
    return make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def results(run: RunFolder) -> Results:
    """Return its results."""
    return read_results(run)


@pytest.fixture(scope="session")
def law(results: Results) -> ScalingLaw:
    """Return the law fitted to it."""
    return fit(results.to_frame(), num_bootstraps=100)


@pytest.fixture
def run_factory(tmp_path: Path) -> Callable[..., RunFolder]:
    """Return what writes a run folder for a study."""
    return lambda study=None, **options: make_run(tmp_path, study, **options)


@pytest.fixture(scope="session")
def study_factory() -> Callable[..., Study]:
    """Return what makes a study."""
    return make_study


@pytest.fixture
def flops_budget() -> Budget:
    """Return ten times the largest trial's compute."""
    return Budget(flops=1e15)
