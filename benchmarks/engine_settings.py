"""What each setting of the engine costs and saves, on one thread of this machine's CPU.

    python benchmarks/engine_settings.py [--rounds N]

One model (6 layers, d_model 256, context 256, vocabulary 4096, 8 sequences per step). CPU time is
the median over interleaved rounds; memory is the most that a forward and backward pass holds
beside parameters and optimizer states, from torch's profiler, beside the cost model's figure.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from planner.costs import ClusterConfig, resolve_cluster
from planner.costs.estimates import device_peaks
from planner.costs.memory import MemoryConstants, memory_use
from planner.costs.workload import workload_of
from planner.engine.checkpoint import Checkpoints, Saved
from planner.engine.parallel.workers import Workers
from planner.engine.step import Stepper
from planner.engine.tasks import load_samples
from planner.trial import TrialConfig
from planner.units import format_bytes

ALONE = Workers(rank=0, world_size=1, device=torch.device("cpu"))
SETTINGS: dict[str, dict[str, dict[str, object]]] = {
    "as it is": {},
    "activation_checkpointing: selective": {"execution": {"activation_checkpointing": "selective"}},
    "activation_checkpointing: full": {"execution": {"activation_checkpointing": "full"}},
    "chunked_loss": {"execution": {"chunked_loss": True}},
    "full + chunked_loss": {
        "execution": {"activation_checkpointing": "full", "chunked_loss": True}
    },
    "4 micro-batches": {"batch": {"micro_batch_sequences": 2}},
    "compute: bf16": {"precision": {"compute": "bf16"}},
    "emulate: fp8-e4m3": {"precision": {"emulate": "fp8-e4m3", "emulate_activations": True}},
    "emulate: int8": {"precision": {"emulate": "int8", "emulate_activations": True}},
    "compile": {"execution": {"compile": True}},
    "weight_norm": {"model": {"weight_norm": True}},
    "dropout: 0.1": {"model": {"dropout": 0.1}},
    "label_smoothing: 0.1": {"optimizer": {"label_smoothing": 0.1}},
    "optimizer: sgd": {"optimizer": {"name": "sgd"}},
    "optimizer: adagrad": {"optimizer": {"name": "adagrad"}},
    "optimizer: lamb": {"optimizer": {"name": "lamb"}},
    "optimizer: adafactor": {"optimizer": {"name": "adafactor"}},
    "optimizer: muon": {"optimizer": {"name": "muon"}},
}


def trial(sections: dict[str, dict[str, object]]) -> TrialConfig:
    """Return the benchmark's model with some settings changed."""
    base: dict[str, dict[str, object]] = {
        "model": {
            "num_layers": 6, "d_model": 256, "num_heads": 4, "sequence_length": 256,
            "vocab_size": 4096,
        },
        "train": {"tokens": 256 * 8 * 100},
        "batch": {"sequences_per_step": 8},
    }  # fmt: skip
    merged = {k: {**base.get(k, {}), **sections.get(k, {})} for k in base | sections}
    return TrialConfig.model_validate(merged)


def make_stepper(config: TrialConfig) -> Stepper:
    """Return the engine's stepper in this process."""
    return Stepper(config, ALONE, load_samples(config))


def peak_bytes(stepper: Stepper) -> int:
    """Return the most that a forward and backward pass holds beside what it began with."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        stepper._accumulate(0, stepper.config.num_micro_batches)
    for _, parameter in stepper.named:
        parameter.grad = None
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def modelled_bytes(config: TrialConfig) -> float:
    """Return what the cost model says of the same: gradients, activations, logits."""
    cluster = resolve_cluster(ClusterConfig())
    w = workload_of(config, device_peaks(config, cluster), on_cpu=True)
    use = memory_use(w, MemoryConstants())
    return float(use.gradients + use.activations + use.logits)


def main() -> None:
    """Print the table of settings, and what a checkpoint takes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    steppers = {name: make_stepper(trial(sections)) for name, sections in SETTINGS.items()}
    taken: dict[str, list[float]] = {name: [] for name in steppers}
    for number in range(options.rounds + 1):
        for name, stepper in steppers.items():
            start = time.process_time()
            stepper.step(8 * number, 8, 0.5)
            if number:
                taken[name].append(time.process_time() - start)
    base = statistics.median(taken["as it is"])
    print("| setting | CPU ms per step | of the first | held, measured | held, cost model |")
    print("|---|---|---|---|---|")
    for name, stepper in steppers.items():
        seconds = statistics.median(taken[name])
        print(
            f"| {name} | {seconds * 1e3:.0f} | {seconds / base:.2f} "
            f"| {format_bytes(peak_bytes(stepper))} "
            f"| {format_bytes(modelled_bytes(stepper.config))} |"
        )
    print()
    checkpoints(steppers["as it is"])


def checkpoints(stepper: Stepper) -> None:
    """Print the time of a checkpoint."""
    number = sum(parameter.numel() for _, parameter in stepper.named)
    with tempfile.TemporaryDirectory() as folder:
        writer = Checkpoints(Path(folder), ALONE, in_parts=False, in_background=False)
        seconds = []
        for step in range(1, 6):
            saved = Saved(
                step=step, sequences=8 * step, train_seconds=0.0, elapsed_seconds=0.0,
                first_loss=0.0, corpus_hash="", model={}, seed=0,
            )  # fmt: skip
            start = time.perf_counter()
            writer.save(saved, stepper.named, stepper.optimizer, {})
            seconds.append(time.perf_counter() - start)
    print(
        f"checkpoint of {number / 1e6:.1f} M parameters: {statistics.median(seconds) * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
