"""Populations that copy by chance (pbt) and by a model (pb2) beside one without copying.

    python benchmarks/pbt.py --seeds 5

Members of one tiny model with learning rates from far too small to too large train on the Python
library's sources, at equal compute. Printed: the best final validation loss of each population.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from planner.config import parse_config
from planner.study import Study
from planner.tuning import sweep

RATE = "optimizer.learning_rate"


SCHEDULERS = ("none", "pbt", "pb2")


def study_of(scheduler: str, seed: int, options: argparse.Namespace) -> Study:
    """Return the study of one population."""
    data: dict[str, Any] = {
        "name": f"{scheduler}-{seed}",
        "search_space": {"name": "rates", "parameters": {RATE: {"loguniform": [1e-4, 1e-1]}}},
        "base": {
            "model": {"num_layers": 2, "d_model": 32, "num_heads": 2, "sequence_length": 64},
            "batch": {"sequences_per_step": 8},
            "schedule": {"name": options.schedule},
            "train": {
                "tokens": options.tokens,
                "num_validations": round(1 / options.interval),
                "validation_tokens": 8192,
                "seed": seed,
            },
        },
        "search": {
            "algorithm": "random",
            "num_trials": options.members,
            "seed": seed,
            "max_concurrent": 1,
            "scheduler": {
                "name": scheduler,
                "interval_fraction": options.interval,
                "perturb": [RATE],
            },
        },
        "budget": {"device_hours": 10.0},
        "cluster": {"device": "cpu"},
    }
    return parse_config(data, Study)


def best_loss(scheduler: str, seed: int, options: argparse.Namespace) -> tuple[float, float]:
    """Return the best final loss of a population, and the FLOPs that it spent."""
    study = study_of(scheduler, seed, options)
    with tempfile.TemporaryDirectory() as root:
        results = sweep(study, executor="inline", root=Path(root))
    best = results.best()
    assert best is not None
    assert best.val_loss is not None
    return best.val_loss, results.spend.flops


def main() -> None:
    """Run all populations and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--interval", type=float, default=0.2, help="share between meetings")
    parser.add_argument("--schedule", default="wsd", help="of every member's learning rate")
    options = parser.parse_args()
    print("| seed | no copies | pbt | pb2 | FLOPs, most / least |")
    print("|---|---|---|---|---|", flush=True)
    losses: dict[str, list[float]] = {name: [] for name in SCHEDULERS}
    for seed in range(options.seeds):
        found = {name: best_loss(name, seed, options) for name in SCHEDULERS}
        flops = [spent for _, spent in found.values()]
        shown = []
        for name in SCHEDULERS:
            losses[name].append(found[name][0])
            shown.append(f"{found[name][0]:.4f}")
        print(f"| {seed} | {' | '.join(shown)} | {max(flops) / min(flops):.3f} |", flush=True)
    for better, worse in (("pbt", "none"), ("pb2", "none"), ("pb2", "pbt")):
        gains = [b - a for a, b in zip(losses[better], losses[worse], strict=True)]
        print(f"{better} over {worse}: mean gain {statistics.mean(gains):+.4f} nats, better in "
              f"{sum(gain > 0 for gain in gains)} of {len(gains)} seeds")  # fmt: skip


if __name__ == "__main__":
    main()
