"""What the sweep costs beside bare Ray Tune: trials and decisions per second, and what is left behind.

    python benchmarks/overhead.py --trials 100 --reports 20

Every variant runs the same number of trivial trials, one after the other in time, on one local Ray
of two CPUs, in one process: stock Tune without and with actor reuse (its loggers on, as they are
by default, and off), then planner's executor. Nothing is trained. Before and after, processes,
placement groups, open files and shared-memory segments are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
import ray
from ray import tune
from ray.util import placement_group_table

from planner.config import parse_config
from planner.study import Study
from planner.trial import TrialConfig, TrialResult, TrialState
from planner.tuning import sweep
from planner.tuning.ray_executor import RayExecutor

REPORTS_VARIABLE = "PLANNER_BENCHMARK_REPORTS"


def trivial(config: TrialConfig, *, trial: str, on_metrics: Any, **_: Any) -> TrialResult:
    """Report without training."""
    count = int(os.environ[REPORTS_VARIABLE])
    for i in range(1, count + 1):
        if not on_metrics({"val_loss": 1.0 / i, "train_flops": 1e3 * i, "num_steps": i}):
            break
    return TrialResult(trial=trial, config={}, state=TrialState.COMPLETED, val_loss=1.0 / count)


def stock(config: dict[str, Any]) -> None:
    """Report without training, to Tune."""
    for i in range(1, int(os.environ[REPORTS_VARIABLE]) + 1):
        tune.report({"val_loss": 1.0 / i})


def run_stock(folder: Path, num_trials: int, *, reuse: bool) -> None:
    """Run the trials with Tune as it comes."""
    tuner = tune.Tuner(
        tune.with_resources(stock, {"CPU": 1}),
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(num_samples=num_trials, reuse_actors=reuse),
        run_config=tune.RunConfig(name="stock", storage_path=str(folder), verbose=0),
    )
    assert not tuner.fit().errors


def run_ours(folder: Path, num_trials: int) -> None:
    """Run the trials with planner's executor, ledger and all."""
    data: dict[str, Any] = {
        "name": "overhead",
        "search_space": {
            "name": "rates",
            "parameters": {"optimizer.learning_rate": {"loguniform": [1e-4, 1e-2]}},
        },
        "base": {
            "model": {"num_layers": 1, "d_model": 16, "num_heads": 1, "sequence_length": 32},
            "batch": {"sequences_per_step": 4},
            "train": {"tokens": 2048},
        },
        "search": {"algorithm": "random", "num_trials": num_trials},
        "budget": {"device_hours": 100.0},
        "cluster": {"device": "cpu", "devices_per_node": 2},
    }
    module = Path(__file__).stem
    executor = RayExecutor(trainer=f"{module}:trivial")
    results = sweep(parse_config(data, Study), executor=executor, root=folder)
    assert results.count(TrialState.COMPLETED) == num_trials
    assert len(results.curves) == num_trials * int(os.environ[REPORTS_VARIABLE])


def left_behind() -> dict[str, int]:
    """Return counts of what a sweep could leave behind."""
    this = psutil.Process()
    names = []
    for process in this.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            names.append(process.name())
    actors = [name for name in names if "Actor" in name or "Train" in name]
    groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
    shared = Path("/dev/shm")
    return {
        "trial processes": len(actors),
        "placement groups": len(groups),
        "open files": this.num_fds(),
        "shared-memory segments": len(list(shared.iterdir())) if shared.is_dir() else 0,
    }


def measure(name: str, run: Callable[[Path], None], num_trials: int, num_reports: int) -> float:
    """Run one variant, print its row and return its trials per second."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))
    seconds = time.monotonic() - begun
    rate = num_trials / seconds
    print(f"| {name} | {seconds:.1f} | {rate:.2f} | {rate * num_reports:.0f} |", flush=True)
    return rate


def main() -> None:
    """Run the variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--reports", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1, help="of planner and stock with reuse")
    parser.add_argument("--slow-trials", type=int, help="trials without reuse; by default all")
    options = parser.parse_args()
    reports = options.reports
    os.environ[REPORTS_VARIABLE] = str(reports)
    logging.disable(logging.ERROR)
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    print(f"load average at the start: {os.getloadavg()[0]:.1f}")
    print(
        f"| {options.trials} trials x {options.reports} reports | seconds | trials/s | reports/s |"
    )
    print("|---|---|---|---|", flush=True)
    run_ours(Path(tempfile.mkdtemp()), 4)
    before = left_behind()
    rates: dict[str, list[float]] = {"planner": [], "stock": []}
    for _ in range(options.rounds):
        rates["planner"].append(
            measure("planner", lambda f: run_ours(f, options.trials), options.trials, reports)
        )
        time.sleep(3)
        after = left_behind()
        rates["stock"].append(
            measure(
                "stock Tune, reuse",
                lambda f: run_stock(f, options.trials, reuse=True),
                options.trials,
                reports,
            )
        )
    ours, reuse = (statistics.median(rates[name]) for name in ("planner", "stock"))
    count = options.slow_trials or options.trials
    plain = measure("stock Tune, no reuse", lambda f: run_stock(f, count, reuse=False), count,
                    reports)  # fmt: skip
    print(f"planner / stock without reuse: {ours / plain:.1f}; with reuse: {ours / reuse:.2f}")
    print("left behind (before -> after):")
    for name, count in before.items():
        print(f"  {name}: {count} -> {after[name]}")
    ray.shutdown()


if __name__ == "__main__":
    main()
