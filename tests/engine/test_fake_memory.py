"""The traced memory against the memory of real steps, as torch's profiler measures it."""

import json
import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from planner.costs import ClusterConfig, estimate, resolve_cluster
from planner.costs.tracing import trace_memory
from planner.engine.parallel.workers import Workers
from planner.engine.step import Stepper
from planner.trial import (
    BatchConfig,
    ExecutionConfig,
    ModelConfig,
    ParallelLayout,
    PrecisionConfig,
    TrainConfig,
    TrialConfig,
)

MODEL = ModelConfig(num_layers=3, d_model=128, sequence_length=128, vocab_size=1024)


def trial(micro=None, layout=None, **execution):
    precision = execution.pop("precision", "fp32")
    return TrialConfig(
        model=MODEL,
        train=TrainConfig(tokens=10**5),
        batch=BatchConfig(sequences_per_step=8, micro_batch_sequences=micro),
        layout=layout or ParallelLayout(),
        execution=ExecutionConfig(**execution),
        precision=PrecisionConfig(compute=precision),
    )


class Zeros:
    """Batches of zeros: memory does not depend on the tokens."""

    validation_starts = ()

    def training(self, first_sample, num_sequences):
        shape = (num_sequences, MODEL.sequence_length)
        return torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)


def measured_peak_bytes(config):
    """Return the largest sum of living tensors in a second step, states included."""
    workers = Workers(rank=0, world_size=1, device=torch.device("cpu"))
    stepper = Stepper(config, workers, Zeros())
    stepper.step(0, 8, 0.5)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        stepper.step(0, 8, 0.5)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    states = sum(
        value.nbytes for state in stepper.optimizer.state.values()
        for value in state.values() if torch.is_tensor(value)
    )  # fmt: skip
    return peak + states + sum(p.nbytes for _, p in stepper.named)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        trial(),
        trial(micro=2),
        trial(activation_checkpointing="full"),
        trial(precision="bf16"),
    ],
    ids=["whole batch", "micro-batches", "recomputed", "bf16"],
)
def test_traced_tensors_are_within_5_percent_of_the_profilers_peak(config):
    traced = trace_memory(config)
    measured = measured_peak_bytes(config)
    print(f"traced {traced.tensor_bytes:.0f}, measured {measured:.0f}")
    assert traced.tensor_bytes == pytest.approx(measured, rel=0.05)


@pytest.mark.slow
def test_sharding_lowers_the_traced_memory():
    alone = trace_memory(trial())
    layout = ParallelLayout(shard_parallel=4)
    sharded = trace_memory(trial(layout=layout))
    assert alone.kind_bytes["optimizer"] == pytest.approx(
        4 * sharded.kind_bytes["optimizer"], rel=0.02
    )
    assert sum(sharded.kind_bytes.values()) == pytest.approx(sharded.tensor_bytes)


@pytest.mark.slow
def test_an_estimate_takes_the_traced_memory_instead_of_the_closed_form():
    config, cluster = trial(), resolve_cluster(ClusterConfig())
    traced = trace_memory(config)
    found = estimate(config, cluster, traced=traced)
    assert found.peak_memory_bytes == pytest.approx(traced.resident_bytes)
    assert found.step_seconds == estimate(config, cluster).step_seconds


@pytest.mark.slow
def test_a_configuration_that_decides_by_values_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(trial(precision="fp16").model_dump_json(exclude_none=True))
    done = subprocess.run(
        [sys.executable, "-m", "planner.engine.estimate", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 5
    assert "fp16 looks at its gradients" in done.stderr
    assert "Traceback" not in done.stderr
    assert trace_memory(trial(precision="fp16")) is None


@pytest.mark.slow
def test_the_entry_prints_one_json_document(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(trial().model_dump_json(exclude_none=True))
    done = subprocess.run(
        [sys.executable, "-m", "planner.engine.estimate", str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["resident_bytes"] == found["tensor_bytes"] + found["process_bytes"]
