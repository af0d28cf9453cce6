"""Peak memory of a trial's worker, from the engine's own model under fake tensors.

Two steps of the real Stepper run on tensors without storage, while torch's trackers count what would
be alive. Everything private to torch 2.13 that this needs stands in this module. It must run in a
process of its own (`python -m planner.engine.estimate`): some operators abort the process, and fake
tensors must not meet caches that hold real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh

from planner.engine.data.windows import Batch
from planner.engine.models.layers import rope_tables
from planner.engine.parallel.workers import Workers
from planner.engine.step import Stepper
from planner.engine.tasks import TASKS
from planner.errors import InfeasibleError
from planner.trial import TrialConfig
from planner.trial.support import check_supported

__all__ = ["FakePeak", "trace_peak"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FakePeak:
    """What one worker needs at its peak."""

    tensor_bytes: float
    """Parameters, gradients, states, activations and temporaries alive together."""
    param_bytes: float
    """Parameters alone; the rest of the kinds as the tracker counted them at the peak."""
    gradient_bytes: float
    optimizer_bytes: float
    activation_bytes: float
    process_bytes: float
    """Resident memory of a process that has loaded the engine and holds no tensors."""

    @property
    def resident_bytes(self) -> float:
        """What a worker on a CPU would show as its peak."""
        return self.tensor_bytes + self.process_bytes


class _NoSamples:
    """Batches of zeros of the right shape."""

    def __init__(self, config: TrialConfig) -> None:
        self.config = config

    def training(self, first_sample: int, num_sequences: int) -> Batch:
        """Return inputs and targets."""
        return TASKS[self.config.task].blank(self.config.model, num_sequences)


def _check_traceable(config: TrialConfig) -> None:
    check_supported(config)
    reasons = {
        "pipeline stages send real tensors": config.layout.pipeline_parallel > 1,
        "experts route by values": config.model.num_experts is not None,
        "fp16 looks at its gradients": config.precision.compute == "fp16",
        "LAMB and Adafactor look at norms": config.optimizer.name in ("lamb", "adafactor"),
    }
    for reason, holds in reasons.items():
        if holds:
            raise InfeasibleError(
                f"memory cannot be traced under fake tensors: {reason}.",
                hint="The closed form of planner.costs stands in.",
            )


@contextmanager
def _workers(config: TrialConfig) -> Iterator[Workers]:
    """Give this process the place of rank 0 in a group whose collectives do nothing."""
    number = config.layout.num_workers
    if number > 1:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=number)
    try:
        yield Workers(rank=0, world_size=number, device=torch.device("cpu"))
    finally:
        if number > 1:
            dist.destroy_process_group()


@contextmanager
def _meshes_outside_fake_mode() -> Iterator[None]:
    """Let meshes compute their ranks on real tensors while fake mode is on."""
    names = ("_concatenate", "_flatten", "__getitem__", "_get_slice_mesh_layout")
    kept = {name: DeviceMesh.__dict__[name] for name in names if name in DeviceMesh.__dict__}

    def outside(member: Any) -> Any:
        function = getattr(member, "__func__", member)

        def call(*args: Any, **kwargs: Any) -> Any:
            with unset_fake_temporarily():
                return function(*args, **kwargs)

        return staticmethod(call) if isinstance(member, staticmethod) else call

    for name, member in kept.items():
        setattr(DeviceMesh, name, outside(member))
    try:
        yield
    finally:
        for name, member in kept.items():
            setattr(DeviceMesh, name, member)


def _make_stepper(config: TrialConfig, workers: Workers) -> Stepper:
    """Build the stepper inside fake mode, with the groups made outside of it."""
    step: Any = import_module("planner.engine.step")
    make_groups = step.make_groups

    def outside(*args: Any) -> Any:
        with unset_fake_temporarily():
            return make_groups(*args)

    step.make_groups = outside
    try:
        return Stepper(config, workers, _NoSamples(config))  # type: ignore[arg-type]
    finally:
        step.make_groups = make_groups


def _tracker(stepper: Stepper) -> Any:
    if stepper.groups.shards_parameters:
        return FSDPMemTracker(stepper.local.whole, stepper.optimizer)
    tracker = MemTracker()
    tracker.track_external(*stepper.local.stages.values(), stepper.optimizer)
    return tracker


def _forget_modules_per_micro_batch(stepper: Stepper, tracker: Any) -> None:
    """Let the tracker see a module again in every micro-batch; the peak is kept."""
    stepping: Any = stepper
    forward = stepping._micro_loss

    def forward_anew(*args: Any) -> torch.Tensor:
        tracker.reset_mod_stats()
        return forward(*args)

    stepping._micro_loss = forward_anew


def trace_peak(config: TrialConfig) -> FakePeak:
    """Return the peak of one worker over two steps of at most two micro-batches.

    States exist only after the first step, accumulated gradients only from the second micro-batch.

    Raises:
        InfeasibleError: The engine cannot run the configuration, or it decides by values.
    """
    _check_traceable(config)
    rope_tables.cache_clear()
    process_bytes = float(psutil.Process().memory_info().rss)
    sequences = config.layout.data_shards * config.micro_batch_sequences
    sequences *= min(2, config.num_micro_batches)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with _workers(config) as workers, fake, _meshes_outside_fake_mode():
        stepper = _make_stepper(config, workers)
        tracker = _tracker(stepper)
        _forget_modules_per_micro_batch(stepper, tracker)
        with tracker:
            for _ in range(2):
                stepper.step(0, sequences, 0.5)
        kinds = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    rope_tables.cache_clear()
    by_name = {str(getattr(kind, "name", kind)): float(size) for kind, size in kinds.items()}
    return FakePeak(
        tensor_bytes=by_name["Total"],
        param_bytes=_sum_of(by_name, "PARAM"),
        gradient_bytes=_sum_of(by_name, "GRAD"),
        optimizer_bytes=_sum_of(by_name, "OPT"),
        activation_bytes=_sum_of(by_name, "ACT", "TEMP", "INP", "OTH", "BUFFER"),
        process_bytes=process_bytes,
    )


def _sum_of(by_name: dict[str, float], *marks: str) -> float:
    return sum(size for name, size in by_name.items() if any(mark in name for mark in marks))
