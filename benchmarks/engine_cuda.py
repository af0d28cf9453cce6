"""How fast the engine is on a CUDA device, and how near its cost model comes: the table of the docs.

    python benchmarks/engine_cuda.py [--models 124M,350M,1.1B] [--precisions bf16,fp8] [--steps 30]

One device. Every row trains the model at context 1024 and prints MFU, tokens per second, seconds per
step and peak memory beside what `planner.costs` predicts of them. Without a CUDA device it says so
and exits with 1; a row that runs out of memory or lacks its format says so in the table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys

from planner.engine import worker_environment
from planner.errors import PlannerError
from planner.trial import TrialConfig

MODELS = {
    # Layers, width, heads, sequences per micro-batch: at least 32 x 1024 tokens per step.
    "124M": (12, 768, 12, 32),
    "350M": (24, 1024, 16, 32),
    "1.1B": (24, 1920, 15, 16),
}
LENGTH, VOCABULARY, WARM_UP_STEPS = 1024, 50_304, 10
STEPS_PER_LAP = 5


def trial(model: str, precision: str, *, compiled: bool) -> TrialConfig:
    """Return the configuration of a row: the usual recipe, the loss chunk by chunk."""
    layers, width, heads, micro_batch = MODELS[model]
    return TrialConfig.model_validate({
        "model": {
            "num_layers": layers, "d_model": width, "num_heads": heads, "vocab_size": VOCABULARY,
            "sequence_length": LENGTH, "norm": "layernorm", "position": "learned",
        },
        "train": {"tokens": LENGTH * 32 * 1000, "validation_tokens": LENGTH},
        "batch": {"sequences_per_step": 32, "micro_batch_sequences": micro_batch},
        "optimizer": {"learning_rate": 3e-4},
        "precision": {"compute": precision},
        "execution": {"compile": compiled, "chunked_loss": True},
    })  # fmt: skip


def measure(config: TrialConfig, steps: int) -> dict[str, float | str]:
    """Return what a row measures, in this process."""
    import torch

    from planner.costs import ClusterConfig, estimate, resolve_cluster
    from planner.costs.flops import train_flops_per_token
    from planner.engine.measurement import peak_flops_per_second
    from planner.engine.parallel.workers import Workers
    from planner.engine.power import PowerMeter, catalogue_name
    from planner.engine.step import Stepper
    from planner.engine.tasks import load_samples

    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    workers = Workers(rank=0, world_size=1, device=device)
    stepper = Stepper(config, workers, load_samples(config))
    reader = stepper.read_ahead()
    per_step = config.batch.sequences_per_step
    for number in range(WARM_UP_STEPS):
        stepper.step(number * per_step, per_step, 0.5)
    power = PowerMeter(device, 1)
    laps = []
    for lap in range(max(3, steps // STEPS_PER_LAP)):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for number in range(STEPS_PER_LAP):
            place = WARM_UP_STEPS + lap * STEPS_PER_LAP + number
            stepper.step(place * per_step, per_step, 0.5)
        last.record()
        last.synchronize()
        laps.append(first.elapsed_time(last) / 1e3 / STEPS_PER_LAP)
    seconds, drawn = statistics.median(laps), power.power()
    power.close()
    reader.close()
    found: dict[str, float | str] = {
        "device": torch.cuda.get_device_name(device),
        "step_seconds": seconds,
        "tokens_per_second": per_step * LENGTH / seconds,
        "peak_memory_bytes": float(torch.cuda.max_memory_allocated(device)),
    }
    if drawn.watts is not None:
        found["watts"] = drawn.watts
    peak = peak_flops_per_second(config, device)
    if peak is not None:
        flops = train_flops_per_token(config.model)
        found["mfu"] = per_step * LENGTH / seconds * flops / peak
    name = catalogue_name(torch.cuda.get_device_name(device))
    if name is not None:
        cluster = resolve_cluster(ClusterConfig(device=name, devices_per_node=1))
        cost = estimate(config, cluster)
        found["predicted_step_seconds"] = cost.step_seconds
        found["predicted_peak_memory_bytes"] = cost.peak_memory_bytes
    return found


def row(model: str, precision: str, steps: int, *, compiled: bool) -> str:
    """Return a row of the table, measured in a process of its own."""
    command = [sys.executable, __file__, "--one", model, precision, "--steps", str(steps)]
    if not compiled:
        command.append("--no-compile")
    environment = os.environ | worker_environment(trial(model, precision, compiled=compiled))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    name = f"| {model}, context {LENGTH}, {precision}"
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no output"
        return f"{name} | failed: {reason} | | | | | |"
    found = json.loads(done.stdout.strip().splitlines()[-1])

    def shown(key: str, factor: float, pattern: str) -> str:
        return format(found[key] * factor, pattern) if key in found else "-"

    return (
        f"{name} | {found['device']} | {datetime.date.today()} | {shown('mfu', 1, '.1%')} "
        f"| {shown('tokens_per_second', 1, ',.0f')} "
        f"| {shown('predicted_step_seconds', 1e3, '.0f')}, {shown('step_seconds', 1e3, '.0f')} ms "
        f"| {shown('predicted_peak_memory_bytes', 2**-30, '.1f')}, "
        f"{shown('peak_memory_bytes', 2**-30, '.1f')} GiB |"
    )


def main() -> int:
    """Print the table, or one row's measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--precisions", default="bf16,fp8")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print(
            "no CUDA device: nothing was measured. Run this on a machine with one "
            f"(torch {torch.__version__} finds none here).",
            file=sys.stderr,
        )
        return 1
    compiled = not options.no_compile
    if options.one:
        try:
            found = measure(trial(*options.one, compiled=compiled), options.steps)
        except (PlannerError, torch.OutOfMemoryError) as error:
            print(f"{type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            return 1
        print(json.dumps(found))
        return 0
    print("| model | device | date | MFU | tokens/s | predicted, measured step | memory |")
    print("|---|---|---|---|---|---|---|")
    for model in options.models.split(","):
        for precision in options.precisions.split(","):
            print(row(model, precision, options.steps, compiled=compiled), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
