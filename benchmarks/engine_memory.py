"""Estimated against measured peak memory of engine processes on this machine's CPU.

    python benchmarks/engine_memory.py

Each row is a run of `python -m planner.engine` (four steps and a validation), its resident peak, and
`estimate` with the traced memory (`planner.costs.tracing`) and with the closed form alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from planner.costs import ClusterConfig, estimate, resolve_cluster
from planner.costs.tracing import trace_memory
from planner.trial import TrialConfig
from planner.units import format_bytes

MODELS: dict[str, dict[str, object]] = {
    "0.1M": {"num_layers": 2, "d_model": 64, "sequence_length": 64},
    "0.8M": {"num_layers": 4, "d_model": 128, "sequence_length": 128},
    "5.8M": {"num_layers": 6, "d_model": 256, "sequence_length": 256, "vocab_size": 4096},
    "25M": {"num_layers": 8, "d_model": 512, "sequence_length": 128},
}
ROWS: list[tuple[str, int, dict[str, object]]] = [
    ("0.1M", 8, {}),
    ("0.8M", 12, {}),
    ("5.8M", 8, {}),
    ("5.8M", 8, {"execution": {"activation_checkpointing": "full"}}),
    ("5.8M", 8, {"batch": {"sequences_per_step": 8, "micro_batch_sequences": 2}}),
    ("5.8M", 8, {"precision": {"compute": "bf16"}}),
    ("5.8M", 8, {"layout": {"data_parallel": 2}}),
    ("5.8M", 8, {"layout": {"shard_parallel": 2}}),
    ("25M", 4, {}),
]


def trial(model: str, sequences: int, changed: dict[str, object]) -> TrialConfig:
    """Return a trial of four steps."""
    length = MODELS[model]["sequence_length"]
    assert isinstance(length, int)
    base: dict[str, object] = {
        "model": MODELS[model],
        "train": {"tokens": 4 * sequences * length, "num_validations": 1},
        "batch": {"sequences_per_step": sequences},
    }
    return TrialConfig.model_validate(base | changed)


def measured_bytes(config: TrialConfig) -> float:
    """Return the resident peak of the fullest worker of a run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(config.model_dump_json(exclude_none=True), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "planner.engine", str(path)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
            timeout=600,
        )  # fmt: skip
    return float(json.loads(done.stdout)["peak_memory_bytes"])


def main() -> None:
    """Print one row per configuration."""
    cluster = resolve_cluster(ClusterConfig(devices_per_node=4))
    print("| model | sequences | changed | measured | traced | error | closed form | error |")
    print("|---|---|---|---|---|---|---|---|")
    for model, sequences, changed in ROWS:
        config = trial(model, sequences, changed)
        measured = measured_bytes(config)
        found = [
            estimate(config, cluster, traced=traced).peak_memory_bytes
            for traced in (trace_memory(config), None)
        ]
        cells = [f"{format_bytes(x)} | {x / measured - 1:+.1%}" for x in found]
        print(
            f"| {model} | {sequences} | {json.dumps(changed)} | {format_bytes(measured)} "
            f"| {' | '.join(cells)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
