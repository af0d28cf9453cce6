"""Memory from the engine itself: starts its fake-tensor estimator in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from planner.trial import TrialConfig

__all__ = ["TracedMemory", "Traces", "trace_memory", "untraceable_reason"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedMemory:
    """Bytes of one worker at its peak."""

    tensor_bytes: float
    """All tensors alive together; what a device's allocator would hold."""
    resident_bytes: float
    """With the process: what a worker on a CPU shows."""
    kind_bytes: dict[str, float]
    """params, gradients, optimizer and activations at the peak; sums to tensor_bytes."""


def untraceable_reason(config: TrialConfig) -> str | None:
    """Return why the engine cannot trace a configuration on fake tensors, or None where it can."""
    reasons = {
        "pipeline stages send real tensors": config.layout.pipeline_parallel > 1,
        "workers of a context group send real tensors": config.layout.context_parallel > 1,
        "experts route by values": config.model.num_experts is not None,
        "fp16 looks at its gradients": config.precision.compute == "fp16",
        "LAMB and Adafactor look at norms": config.optimizer.name in ("lamb", "adafactor"),
        "a compiled model keeps other tensors": config.execution.compile,
        "offloaded states lie elsewhere": config.layout.cpu_offload,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@dataclass(kw_only=True)
class Traces:
    """Traces of configurations, one for each distinct shape, so many and so long at most."""

    max_traces: int = 4
    max_seconds: float = 60.0
    """Of wall clock, of all traces together."""
    spent_seconds: float = field(default=0.0, init=False)
    _found: dict[str, TracedMemory | None] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_taken(self) -> int:
        """Traces that were started."""
        return len(self._found)

    def memory_of(self, config: TrialConfig) -> TracedMemory | str:
        """Return a configuration's traced memory, or why there is none."""
        if find_spec("torch") is None:
            return "the engine's torch is not installed"
        reason = untraceable_reason(config)
        if reason is not None:
            return reason
        shape = _shape_of(config)
        if shape not in self._found:
            left = self.max_seconds - self.spent_seconds
            if self.num_taken >= self.max_traces or left <= 0.0:
                return f"{self.num_taken} shapes are traced already, in {self.spent_seconds:.0f} s"
            start = time.monotonic()
            self._found[shape] = trace_memory(config, timeout_seconds=left)
            self.spent_seconds += time.monotonic() - start
        return self._found[shape] or f"the trace failed, or took over {self.max_seconds:g} s"


def _shape_of(config: TrialConfig) -> str:
    """Return what memory depends on: trials that differ in rates, lengths and seeds share it."""
    whole = ("model", "precision", "layout", "execution", "data")
    shape = config.model_dump(mode="json", include=set(whole))
    optimizer = config.optimizer.model_dump(mode="json", exclude={"learning_rate", "epsilon"})
    shape["optimizer"] = optimizer | {"weight_decay": config.optimizer.weight_decay > 0.0}
    shape["task"] = config.task
    shape["micro_batches"] = [config.micro_batch_sequences, min(2, config.num_micro_batches)]
    return json.dumps(shape, sort_keys=True)


def trace_memory(config: TrialConfig, *, timeout_seconds: float = 120.0) -> TracedMemory | None:
    """Return the peak memory that the engine's own model would need, or None where it cannot tell.

    None: torch is not installed, the configuration cannot be traced (`untraceable_reason`), or the
    trace takes too long. The closed form stands in then.
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
