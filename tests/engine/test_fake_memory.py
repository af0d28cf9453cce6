"""The traced memory against the memory of real steps, as torch's profiler measures it."""

import json
import subprocess
import sys
import weakref
from importlib import import_module

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh

from planner.costs import ClusterConfig, estimate, resolve_cluster, tracing
from planner.engine.heap import Heap
from planner.trial import (
    BatchConfig,
    ExecutionConfig,
    ModelConfig,
    ParallelLayout,
    PrecisionConfig,
    TrainConfig,
    TrialConfig,
)

_TRACED = {}
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


def trace_memory(config):
    """Trace every configuration once."""
    key = config.model_dump_json()
    if key not in _TRACED:
        _TRACED[key] = tracing.trace_memory(config)
    return _TRACED[key]


@pytest.fixture
def measured_peak_bytes(blank_stepper, peak_bytes):
    """A function that returns the largest sum of living tensors in a second step, states included."""

    def measure(config):
        stepper = blank_stepper(config)
        stepper.step(0, 8, 0.5)
        peak = peak_bytes(lambda: stepper.step(0, 8, 0.5))
        states = [v for state in stepper.optimizer.state.values() for v in state.values()]
        own = sum(value.nbytes for value in states if torch.is_tensor(value))
        return peak + own + sum(p.nbytes for _, p in stepper.named)

    return measure


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        trial(),
        trial(micro=2, activation_checkpointing="full", precision="bf16"),
    ],
    ids=["whole batch", "recomputed in micro-batches in bf16"],
)
def test_traced_tensors_are_within_5_percent_of_the_profilers_peak(config, measured_peak_bytes):
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
def test_a_worker_of_a_tensor_group_of_two_holds_half_of_the_parameters():
    alone = trace_memory(trial()).kind_bytes["params"]
    half = trace_memory(trial(layout=ParallelLayout(tensor_parallel=2))).kind_bytes["params"]
    assert half == pytest.approx(alone / 2, rel=0.02)


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
    largest = max(found["tensor_bytes"], found["heap_bytes"])
    assert found["resident_bytes"] == largest + found["process_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {
            "execution": {"activation_checkpointing": "full"},
            "batch": {"sequences_per_step": 8, "micro_batch_sequences": 4},
        },
        {"layout": {"data_parallel": 2}},
    ],
    ids=["recomputed in micro-batches", "two workers"],
)
def test_an_estimate_is_within_5_percent_of_the_peak_of_the_engines_process(tmp_path, changed):
    config = TrialConfig.model_validate(
        {
            "model": {"num_layers": 6, "d_model": 128, "sequence_length": 128, "vocab_size": 2048},
            "train": {"tokens": 3 * 8 * 128, "num_validations": 1},
            "batch": {"sequences_per_step": 8},
        }
        | changed
    )
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json(exclude_none=True))
    done = subprocess.run(
        [sys.executable, "-m", "planner.engine", str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    measured = json.loads(done.stdout)["peak_memory_bytes"]
    cluster = resolve_cluster(ClusterConfig(devices_per_node=2))
    found = estimate(config, cluster, traced=trace_memory(config)).peak_memory_bytes
    print(f"estimated {found / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB")
    assert found == pytest.approx(measured, rel=0.05)


PRIVATE_NAMES = {
    "torch._subclasses.fake_tensor": ("FakeTensorMode", "unset_fake_temporarily"),
    "torch.distributed._tools.mem_tracker": ("MemTracker",),
    "torch.distributed._tools.fsdp2_mem_tracker": ("FSDPMemTracker",),
    "torch.testing._internal.distributed.fake_pg": ("FakeStore",),
    "torch.utils._python_dispatch": ("TorchDispatchMode",),
    "torch.utils._pytree": ("tree_leaves",),
    "torch.utils.weak": ("WeakIdKeyDictionary",),
}


@pytest.mark.parametrize("module", PRIVATE_NAMES)
def test_the_private_names_of_torch_that_the_trace_needs_are_there(module):
    found = import_module(module)
    assert all(hasattr(found, name) for name in PRIVATE_NAMES[module])


def test_the_private_methods_of_torch_that_the_trace_changes_are_there():
    assert "_concatenate" in DeviceMesh.__dict__
    assert "_get_slice_mesh_layout" in DeviceMesh.__dict__
    for name in ("track_external", "get_tracker_snapshot", "reset_mod_stats"):
        assert hasattr(MemTracker, name)


def test_a_storage_of_a_fake_tensor_goes_when_the_tensor_goes_and_knows_its_size():
    with FakeTensorMode():
        tensor = torch.empty(1000)
    storage = tensor.untyped_storage()
    assert storage is tensor.view(10, 100).untyped_storage()
    gone = []
    watched = weakref.ref(storage, gone.append)
    assert storage.size() == 4000
    assert watched() is storage
    del tensor, storage
    assert len(gone) == 1


def test_the_heap_keeps_what_is_free_between_blocks():
    heap = Heap()
    blocks = [heap.allocate(100_000) for _ in range(40)]
    before = heap.free_bytes()
    for block in blocks[:-1:2]:
        heap.release(block)
    assert heap.free_bytes() - before >= 19 * 100_000
    for block in blocks[1::2]:
        heap.release(block)
