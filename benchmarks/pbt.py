"""Population-based training beside the same members without copying, at equal compute.

    python benchmarks/pbt.py --seeds 5

Four members of one tiny model with learning rates from far too small to too large train on the
Python library's sources. Printed: the best final validation loss of each population, by seed.
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


def study_of(scheduler: str, seed: int, tokens: int) -> Study:
    """Return the study of one population."""
    data: dict[str, Any] = {
        "name": f"{scheduler}-{seed}",
        "search_space": {"name": "rates", "parameters": {RATE: {"loguniform": [1e-4, 1e-1]}}},
        "base": {
            "model": {"num_layers": 2, "d_model": 32, "num_heads": 2, "sequence_length": 64},
            "batch": {"sequences_per_step": 8},
            "train": {
                "tokens": tokens,
                "num_validations": 5,
                "validation_tokens": 8192,
                "seed": seed,
            },
        },
        "search": {
            "algorithm": "random",
            "num_trials": 4,
            "seed": seed,
            "max_concurrent": 1,
            "scheduler": {"name": scheduler, "interval_fraction": 0.2, "perturb": [RATE]},
        },
        "budget": {"device_hours": 10.0},
        "cluster": {"device": "cpu"},
    }
    return parse_config(data, Study)


def best_loss(scheduler: str, seed: int, tokens: int) -> tuple[float, float]:
    """Return the best final loss of a population, and the FLOPs that it spent."""
    with tempfile.TemporaryDirectory() as root:
        results = sweep(study_of(scheduler, seed, tokens), executor="inline", root=Path(root))
    best = results.best()
    assert best is not None
    assert best.val_loss is not None
    return best.val_loss, results.spend.flops


def main() -> None:
    """Run all populations and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=131_072)
    options = parser.parse_args()
    print("| seed | with copies | without | FLOPs, with / without |")
    print("|---|---|---|---|", flush=True)
    gains = []
    for seed in range(options.seeds):
        copied, flops = best_loss("pbt", seed, options.tokens)
        alone, flops_alone = best_loss("none", seed, options.tokens)
        gains.append(alone - copied)
        print(f"| {seed} | {copied:.4f} | {alone:.4f} | {flops / flops_alone:.3f} |", flush=True)
    print(
        f"mean gain {statistics.mean(gains):+.4f} nats; better in {sum(g > 0 for g in gains)} seeds"
    )


if __name__ == "__main__":
    main()
