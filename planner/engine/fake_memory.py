"""Peak memory of a trial's worker, from the engine's own model under fake tensors.

Two steps of the real Stepper run on tensors without storage, while torch's trackers count what would
be alive. Everything private to torch 2.13 that this needs stands in this module. It must run in a
process of its own (`python -m planner.engine.estimate`): some operators abort the process, and fake
tensors must not meet caches that hold real ones.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import psutil
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from planner.costs.tracing import untraceable_reason
from planner.engine.data.windows import Batch
from planner.engine.heap import Heap
from planner.engine.models.layers import rope_tables
from planner.engine.parallel.workers import Workers
from planner.engine.step import Stepper
from planner.engine.tasks import TASKS
from planner.engine.training import train
from planner.errors import InfeasibleError
from planner.trial import BatchConfig, ParallelLayout, TrialConfig
from planner.trial.support import check_supported

__all__ = ["FakePeak", "trace_peak"]

_LARGE_BYTES: Final = 2**14
"""Blocks from this size on are worth a look at the heap."""


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
    """Resident memory of a process that has trained a tiny model with the same settings."""
    heap_bytes: float
    """The most that tensors took together with what the heap keeps free between them."""

    @property
    def resident_bytes(self) -> float:
        """What a worker on a CPU would show as its peak."""
        return max(self.heap_bytes, self.tensor_bytes) + self.process_bytes


class _NoSamples:
    """Batches of zeros of the right shape."""

    def __init__(self, config: TrialConfig) -> None:
        self.config = config

    def training(self, first_sample: int, num_sequences: int) -> Batch:
        """Return inputs and targets."""
        return TASKS[self.config.task].blank(self.config.model, num_sequences)


def _check_traceable(config: TrialConfig) -> None:
    check_supported(config)
    reason = untraceable_reason(config)
    if reason is not None:
        raise InfeasibleError(
            f"memory cannot be traced under fake tensors: {reason}.",
            hint="The closed form of planner.costs stands in.",
        )


def _process_bytes(config: TrialConfig) -> float:
    """Return the resident memory after training a tiny model of the same settings on the same corpus.

    That loads what a trial's process loads: the operators' code, the corpus, the pools of threads.
    """
    small: dict[str, Any] = {"num_layers": 1, "d_model": 64, "num_heads": 1}
    length = config.model.sequence_length
    if config.model.family == "decoder":
        length = small["sequence_length"] = min(length, 16)
    model = config.model.replace(**small, num_kv_heads=None, d_ff=None)
    tiny = config.replace(
        model=model,
        train=config.train.replace(
            tokens=4 * length,
            tokens_per_param=None,
            flops=None,
            num_validations=1,
            validation_tokens=length,
        ),
        batch=BatchConfig(sequences_per_step=2),
        layout=ParallelLayout(),
        execution=config.execution.replace(compile=False),
    )
    train(tiny)
    return float(psutil.Process().memory_info().rss)


class _HeapMirror(TorchDispatchMode):
    """Asks the heap for a block for every storage that comes, and frees it when the storage goes."""

    def __init__(self) -> None:
        super().__init__()
        self.heap = Heap()
        self.peak_bytes = 0
        self._alive_bytes = 0
        self._seen: Any = WeakIdKeyDictionary()
        self._watched: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and look at the storages of its results."""
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._look_at(leaf.untyped_storage())
        return result

    def _look_at(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen[storage] = True
        size = storage.size()
        address = self.heap.allocate(size)
        if address is None:
            return

        def gone(_: Any) -> None:
            self.heap.release(address)
            self._alive_bytes -= size
            del self._watched[address]

        self._alive_bytes += size
        self._watched[address] = weakref.ref(storage, gone)
        if size >= _LARGE_BYTES:
            self.peak_bytes = max(self.peak_bytes, self._alive_bytes + self.heap.slack_bytes())


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
    """Return the peak of one worker over steps of at most two micro-batches.

    States exist only after the first step, accumulated gradients only from the second micro-batch.
    The heap and the tracker look at steps of their own: the tracker's notes would change the heap.

    Raises:
        InfeasibleError: The engine cannot run the configuration, or it decides by values.
        ConfigError: The corpus does not suit the configuration.
    """
    _check_traceable(config)
    process_bytes = _process_bytes(config)
    mirror = _HeapMirror()
    with _stepping(config, mirror) as stepper:
        _take_steps(stepper, 3)
    with _stepping(config, nullcontext()) as stepper:
        tracker = _tracker(stepper)
        _forget_modules_per_micro_batch(stepper, tracker)
        with tracker:
            _take_steps(stepper, 2)
        kinds = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    by_name = {str(getattr(kind, "name", kind)): float(size) for kind, size in kinds.items()}
    return FakePeak(
        tensor_bytes=by_name["Total"],
        param_bytes=_sum_of(by_name, "PARAM"),
        gradient_bytes=_sum_of(by_name, "GRAD"),
        optimizer_bytes=_sum_of(by_name, "OPT"),
        activation_bytes=_sum_of(by_name, "ACT", "TEMP", "INP", "OTH", "BUFFER"),
        process_bytes=process_bytes,
        heap_bytes=float(mirror.peak_bytes),
    )


@contextmanager
def _stepping(config: TrialConfig, watch: AbstractContextManager[object]) -> Iterator[Stepper]:
    """Give a stepper whose tensors have no storage, watched from its making on."""
    rope_tables.cache_clear()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with _workers(config) as workers, fake, _meshes_outside_fake_mode(), watch:
        yield _make_stepper(config, workers)
    rope_tables.cache_clear()


def _take_steps(stepper: Stepper, number: int) -> None:
    config = stepper.config
    sequences = config.layout.data_shards * config.micro_batch_sequences
    for _ in range(number):
        stepper.step(0, sequences * min(2, config.num_micro_batches), 0.5)


def _sum_of(by_name: dict[str, float], *marks: str) -> float:
    return sum(size for name, size in by_name.items() if any(mark in name for mark in marks))
