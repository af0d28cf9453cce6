"""Trainers that train nothing: in this process, and in the Ray workers that import this file.

And a study of them, and what its ledger says was decided.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planner.costs import ClusterConfig, estimate, resolve_cluster
from planner.errors import ConfigError
from planner.planning import Candidate
from planner.search_space import Point
from planner.study import Study
from planner.trial import TrialConfig, TrialResult, TrialState
from planner.tuning.ledger import Line
from planner.tuning.sources import Timeline

CLUSTER = resolve_cluster(ClusterConfig(device="cpu", devices_per_node=2))
NUM_REPORTS = 4


def timeline_of(config: TrialConfig, report_at_flops: Sequence[float] = ()) -> Timeline:
    """Return losses that fall towards a best learning rate of 1e-3; above 5e-2 they diverge."""
    cost = estimate(config, CLUSTER)
    whole = cost.train_flops
    even = {whole * (i + 1) / NUM_REPORTS for i in range(NUM_REPORTS)}
    flops = sorted(even | {f for f in report_at_flops if 0 < f < whole})
    rate = config.optimizer.learning_rate
    floor = 2.0 + (math.log10(rate) + 3.0) ** 2
    losses = [math.nan if rate > 5e-2 else floor + 3.0 * whole / (f + whole) for f in flops]
    return Timeline(
        seconds=[f / whole for f in flops],
        flops=flops,
        reports=[{"val_loss": loss} for loss in losses],
    )


class Followed:
    """What `follow` trains, for the simulator."""

    def price(self, trial: str, point: Point) -> Candidate:
        """Never asked: a sweep prices by the cost model."""
        raise AssertionError(trial, point)

    def timeline(
        self, trial: str, point: Point, config: TrialConfig, report_at_flops: Sequence[float]
    ) -> Timeline:
        """Return the curve of a configuration."""
        return timeline_of(config, report_at_flops)


def follow(
    config: TrialConfig, *, trial: str, on_metrics: Any, report_at_flops: Sequence[float],
    checkpoint_dir: Path, rank: int = 0, num_bytes: int = 0, **_: Any,
) -> TrialResult:  # fmt: skip
    """Report the curve of a configuration, with a checkpoint at each report, from the last one."""
    timeline = timeline_of(config, report_at_flops)
    state = TrialState.COMPLETED
    done = reached(checkpoint_dir)
    for number, (flops, report) in enumerate(zip(timeline.flops, timeline.reports, strict=True)):
        if flops <= done or rank:
            continue
        metrics = {**report, "train_flops": flops}
        if math.isfinite(metrics["val_loss"]):
            save(checkpoint_dir, number, metrics, num_bytes)
        if not on_metrics(metrics):
            state = TrialState.STOPPED
            break
    return TrialResult(trial=trial, config={}, state=state)


def follow_with_bytes(config: TrialConfig, **options: Any) -> TrialResult:
    """Follow the curve with checkpoints of a thousand bytes."""
    return follow(config, num_bytes=1000, **options)


def follow_once_repaired(
    config: TrialConfig, *, checkpoint_dir: Path, **options: Any
) -> TrialResult:
    """Follow the curve if there is a file `repaired` beside the checkpoints; fail before."""
    if not (checkpoint_dir.parent.parent / "repaired").exists():
        raise ConfigError("the licence has run out.")
    return follow(config, checkpoint_dir=checkpoint_dir, **options)


def follow_slowly(config: TrialConfig, *, on_metrics: Any, **options: Any) -> TrialResult:
    """Follow the curve, slowly enough for a worker elsewhere to start meanwhile."""

    def report(metrics: dict[str, Any]) -> bool:
        time.sleep(1.5)
        return bool(on_metrics(metrics))

    return follow(config, on_metrics=report, **options)


def save(folder: Path, number: int, metrics: dict[str, Any], num_bytes: int) -> None:
    """Write a checkpoint as the engine lays it out: whole or not at all."""
    writing, target = folder / f".writing-{number}", folder / f"step-{number:08d}"
    writing.mkdir(parents=True, exist_ok=True)
    (writing / "tensors.pt").write_bytes(b"\0" * num_bytes)
    (writing / "state.json").write_text(json.dumps({"report": metrics}))
    if not target.exists():
        writing.rename(target)


def reached(folder: Path) -> float:
    """Return the compute that the newest checkpoint holds."""
    states = sorted(folder.glob("step-*/state.json"))
    return json.loads(states[-1].read_text())["report"]["train_flops"] if states else 0.0


def small_study_of(make_study: Any, algorithm: str, scheduler: str) -> Study:
    """Return a study of six trials for `follow`."""
    rate: dict[str, Any] = {"loguniform": [1e-4, 1e-1]}
    if algorithm == "grid":
        rate = {"choice": [1e-4, 1e-3, 1e-2, 1e-1]}
    parameters = {
        "optimizer.learning_rate": rate,
        "layout.data_parallel": {"choice": [1, 2], "when": "optimizer.learning_rate > 5e-3"},
    }
    settings: dict[str, Any] = {"name": scheduler, "reduction_factor": 2}
    if scheduler in ("pbt", "pb2"):
        settings |= {"perturb": ["optimizer.learning_rate"], "quantile_fraction": 0.4}
        settings |= {"interval_fraction": 0.25}
    search = {"algorithm": algorithm, "scheduler": settings, "num_trials": 6, "max_concurrent": 1}
    constraints = ["optimizer.learning_rate != 1e-4"]
    space = {"name": "s", "parameters": parameters, "constraints": constraints}
    return make_study(search_space=space, search=search)


def decisions(lines: Sequence[Line]) -> list[tuple[Any, ...]]:
    """Return what a ledger says was decided, without its times."""
    kinds = ("proposed", "started", "paused", "copied", "generation", "ended")
    names = ("kind", "trial", "point", "state", "reason", "donor", "attempt")
    return [tuple(line.get(n) for n in names) for line in lines if line["kind"] in kinds]


def leave_traces(
    config: TrialConfig, *, trial: str, on_metrics: Any, checkpoint_dir: Path, rank: int = 0,
    **_: Any,
) -> TrialResult:  # fmt: skip
    """Write down this process and whether a former trial's variable is there, and leave one."""
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    seen = "TRACE" in os.environ
    os.environ["TRACE"] = trial
    (checkpoint_dir / f"rank-{rank}.json").write_text(json.dumps([os.getpid(), seen]))
    if rank == 0:
        on_metrics({"val_loss": 1.0, "train_flops": 1.0})
    return TrialResult(trial=trial, config={}, state=TrialState.COMPLETED)


def hang_once(
    config: TrialConfig, *, trial: str, on_metrics: Any, checkpoint_dir: Path, **_: Any
) -> TrialResult:
    """Hang at the first attempt, report and end at the second."""
    mark = checkpoint_dir / "tried"
    if not mark.exists():
        checkpoint_dir.mkdir(parents=True)
        mark.touch()
        time.sleep(600)
    on_metrics({"val_loss": 1.0, "train_flops": 1.0})
    return TrialResult(trial=trial, config={}, state=TrialState.COMPLETED, val_loss=1.0)
