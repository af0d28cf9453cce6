"""Loss against device-hours: the hypervolume that each searcher reaches, in simulated time.

    python benchmarks/objectives.py --seeds 3

Trials take the cost model's time and reach the loss of a made-up law with a best learning rate.
The reference point and the scale are the same for all runs: the worst and the best of all trials.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
from optuna._hypervolume import compute_hypervolume

from planner.config import parse_config
from planner.costs import resolve_cluster
from planner.objectives import costs_of
from planner.study import Study
from planner.trial import TrialState
from planner.tuning.simulated import simulate
from planner.tuning.sources import LawSource, Timeline

SHAPES = ((1, 16), (2, 32), (3, 48), (4, 64), (4, 96), (6, 128))
RATE = "optimizer.learning_rate"


class RateSource(LawSource):
    """A law of size and tokens whose loss grows away from a learning rate of 0.003."""

    def timeline(self, trial: str, point: Any, *rest: Any) -> Timeline:
        """Return the law's losses, shifted by the distance of the learning rate."""
        found = super().timeline(trial, point, *rest)
        shift = 0.3 * math.log10(point[RATE] / 3e-3) ** 2
        for report in found.reports:
            report["val_loss"] += shift  # type: ignore[index]
        return found


def law(num_params: float, num_tokens: float) -> float:
    """Return a made-up loss in nats per token."""
    return 1.5 + 30 / num_params**0.3 + 30 / num_tokens**0.3


def costs(algorithm: str, seed: int, num_trials: int) -> np.ndarray[Any, Any]:
    """Return loss and device-hours of the trials of one simulated study."""
    shapes = [{"num_layers": n, "d_model": w, "num_heads": w // 16} for n, w in SHAPES]
    data: dict[str, Any] = {
        "name": "front",
        "search_space": {
            "name": "sizes",
            "parameters": {
                "model": {"choice": shapes},
                "train.tokens": {"lograndint": [10_000, 1_000_000]},
                RATE: {"loguniform": [1e-4, 1e-1]},
            },
        },
        "base": {"model": {"sequence_length": 64}, "batch": {"sequences_per_step": 4}},
        "objective": [{"metric": "val_loss"}, {"metric": "device_hours"}],
        "search": {"algorithm": algorithm, "num_trials": num_trials, "seed": seed},
        "budget": {"device_hours": 1e3},
        "cluster": {"device": "cpu", "devices_per_node": 2},
    }
    study = parse_config(data, Study)
    sweep = simulate(study, RateSource(study, resolve_cluster(study.cluster), law))
    rows = [r.result(sweep.now) for r in sweep.trials.values() if r.state is TrialState.COMPLETED]
    found = np.array([costs_of(study.objective, row) for row in rows], dtype=float)
    found[:, 1] = np.log(found[:, 1])
    return found


def main() -> None:
    """Run all studies and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=60)
    options = parser.parse_args()
    names = ("random", "evolution", "bayesian")
    runs = {
        name: [costs(name, seed, options.trials) for seed in range(options.seeds)] for name in names
    }
    every = np.concatenate([run for found in runs.values() for run in found])
    low, high = every.min(0), every.max(0)
    print(f"| searcher | hypervolume after {options.trials // 2} trials | after {options.trials} |")
    print("|---|---|---|")
    for name in names:
        volumes = [
            [
                compute_hypervolume((run[:count] - low) / (high - low), np.ones(2))
                for count in (options.trials // 2, options.trials)
            ]
            for run in runs[name]
        ]
        half, whole = np.mean(volumes, axis=0)
        print(f"| `{name}` | {half:.3f} | {whole:.3f} |", flush=True)


if __name__ == "__main__":
    main()
