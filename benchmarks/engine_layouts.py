"""What each layout of the engine costs and saves: several workers on this machine's CPU.

    python benchmarks/engine_layouts.py [--rounds N]

The model of `engine_settings.py`, trained by `python -m planner.engine` for 2 and for 8 steps with one
thread per worker. CPU time is that of all workers, as the difference of the two runs, so that start-up
drops out; memory is the most that one worker's process held, as its result says, with some 300 MiB of
interpreter and torch; waiting is the share of a step in which the first worker waited for others.
Rounds go over all layouts, so that a machine that slows down does so for all; medians over rounds,
those of ratios too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from planner.trial import TrialConfig
from planner.units import format_bytes

SHORT, LONG = 2, 8
EXPERTS = {"num_experts": 4, "mlp": "gelu"}
LAYOUTS: dict[str, dict[str, dict[str, object]]] = {
    "one worker": {},
    "data 2": {"layout": {"data_parallel": 2}},
    "data 2, sums in bf16": {"layout": {"data_parallel": 2}, "precision": {"reduce": "bf16"}},
    "data 2, powersgd of rank 4": {
        "layout": {"data_parallel": 2, "gradient_compression": "powersgd"}
    },
    "data 2, local_steps 4": {"layout": {"data_parallel": 2, "local_steps": 4}},
    "ZeRO-1 over 2": {"layout": {"shard_parallel": 2, "zero_stage": 1}},
    "ZeRO-2 over 2": {"layout": {"shard_parallel": 2, "zero_stage": 2}},
    "ZeRO-3 over 2": {"layout": {"shard_parallel": 2, "zero_stage": 3}},
    "ZeRO-3 over 2, data 2 (HSDP)": {"layout": {"shard_parallel": 2, "data_parallel": 2}},
    "tensor 2": {"layout": {"tensor_parallel": 2}},
    "tensor 2, sequence_parallel": {"layout": {"tensor_parallel": 2, "sequence_parallel": True}},
    "context 2": {"layout": {"context_parallel": 2}},
    "pipeline 2, gpipe": {"layout": {"pipeline_parallel": 2, "pipeline_schedule": "gpipe"}},
    "pipeline 2, 1f1b": {"layout": {"pipeline_parallel": 2}},
    "pipeline 2, interleaved": {
        "layout": {
            "pipeline_parallel": 2, "virtual_pipeline": 3, "pipeline_schedule": "interleaved",
        }
    },
    "pipeline 2, zbv-zero-bubble": {
        "layout": {
            "pipeline_parallel": 2, "virtual_pipeline": 2, "pipeline_schedule": "zbv-zero-bubble",
        }
    },
    "4 experts, one worker": {"model": EXPERTS},
    "4 experts, data 2": {"model": EXPERTS, "layout": {"data_parallel": 2}},
    "4 experts, expert 2": {
        "model": EXPERTS, "layout": {"data_parallel": 2, "expert_parallel": 2},
    },
}  # fmt: skip


def trial(sections: dict[str, dict[str, object]], num_steps: int) -> TrialConfig:
    """Return the benchmark's model in a layout; pipelines have four micro-batches."""
    base: dict[str, dict[str, object]] = {
        "model": {
            "num_layers": 6, "d_model": 256, "num_heads": 4, "sequence_length": 256,
            "vocab_size": 4096,
        },
        "train": {"tokens": 256 * 8 * num_steps, "num_validations": 1, "validation_tokens": 2048},
        "batch": {"sequences_per_step": 8},
        "execution": {"threads_per_worker": 1},
    }  # fmt: skip
    if sections.get("layout", {}).get("pipeline_parallel"):
        base["batch"]["micro_batch_sequences"] = 2
    merged = {k: {**base.get(k, {}), **sections.get(k, {})} for k in base | sections}
    return TrialConfig.model_validate(merged)


def run(config: TrialConfig) -> tuple[float, dict[str, Any]]:
    """Train in processes of its own; return the CPU seconds of all of them, and the result."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(config.model_dump_json())
        command = [sys.executable, "-m", "planner.engine", str(path), "--out", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        result = json.loads((Path(folder) / "result.json").read_text())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, result


@dataclass(frozen=True, slots=True)
class Measured:
    """One layout in one round."""

    seconds: float
    """CPU time of a step, of all workers."""
    of_one: float
    """The same over that of one worker in the same round."""
    peak_bytes: float
    waits: float


def measure(sections: dict[str, dict[str, object]], one_worker: float | None) -> Measured:
    """Run one layout; without the step of one worker it is its own measure."""
    short, _ = run(trial(sections, SHORT))
    long, result = run(trial(sections, LONG))
    seconds = (long - short) / (LONG - SHORT)
    return Measured(
        seconds=seconds,
        of_one=seconds / (one_worker or seconds),
        peak_bytes=result["peak_memory_bytes"],
        waits=(result["communication_seconds"] or 0.0) / result["train_seconds"],
    )


def main() -> None:
    """Print the table of layouts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="layouts with this in their name")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(f"load average at the start: {os.getloadavg()[0]:.1f}")
    wanted = {name: each for name, each in LAYOUTS.items() if options.only in name}
    rows: dict[str, list[Measured]] = {name: [] for name in wanted}
    for number in range(options.rounds):
        one_worker: dict[bool, float] = {}
        for name, sections in wanted.items():
            kind = "model" in sections
            rows[name].append(measure(sections, one_worker.get(kind)))
            one_worker.setdefault(kind, rows[name][-1].seconds)
        print(f"round {number + 1} of {options.rounds} is done", file=sys.stderr)
    print("| layout | CPU ms per step, all workers | of one worker's | a worker's peak | waits |")
    print("|---|---|---|---|---|")
    for name, found in rows.items():
        cpu, ratio, peak, share = (
            statistics.median(getattr(row, each.name) for row in found) for each in fields(Measured)
        )
        print(f"| {name} | {cpu * 1e3:.0f} | {ratio:.2f} | {format_bytes(peak)} | {share:.0%} |")


if __name__ == "__main__":
    main()
