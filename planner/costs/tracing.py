"""Memory from the engine itself: starts its fake-tensor estimator in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from planner.trial import TrialConfig

__all__ = ["TracedMemory", "trace_memory"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedMemory:
    """Bytes of one worker at its peak."""

    tensor_bytes: float
    """All tensors alive together; what a device's allocator would hold."""
    resident_bytes: float
    """With the process: what a worker on a CPU shows."""
    kind_bytes: dict[str, float]
    """params, gradients, optimizer and activations at the peak; sums to tensor_bytes."""


def trace_memory(config: TrialConfig, *, timeout_seconds: float = 120.0) -> TracedMemory | None:
    """Return the peak memory that the engine's own model would need, or None where it cannot tell.

    None: torch is not installed, the configuration decides by values (experts, fp16) or has pipeline
    stages, or the trace takes too long. The closed form stands in then.
    """
    if find_spec("torch") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(config.model_dump_json(exclude_none=True), encoding="utf-8")
        command = [sys.executable, "-m", "planner.engine.estimate", str(path)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_seconds,
                env=environment, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
    if done.returncode:
        return None
    found = json.loads(done.stdout)
    kinds = {
        "params": found["param_bytes"],
        "gradients": found["gradient_bytes"],
        "optimizer": found["optimizer_bytes"],
    }
    kinds["activations"] = found["tensor_bytes"] - sum(kinds.values())
    return TracedMemory(
        tensor_bytes=found["tensor_bytes"],
        resident_bytes=found["resident_bytes"],
        kind_bytes=kinds,
    )
