"""Checkpoints in parts, by torch.distributed.checkpoint: saved under any layout, loaded under any.

torch writes its index with pickle and reads it so; here it is read by an unpickler that knows the
index's own classes and no others, and an index that announces anything but tensors is refused.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

__all__ = ["load_parts", "save_parts", "saved_shapes"]

_INDEX: Final = ".metadata"
_INDEX_CLASSES: Final = frozenset({
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("torch", "Size"),
    *(("torch", name) for name in ("float32", "float64", "bfloat16", "float16", "int64", "int32")),
})  # fmt: skip


class _IndexUnpickler(pickle.Unpickler):
    """Knows the classes of an index of tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _INDEX_CLASSES:
            raise pickle.UnpicklingError(f"the index asks for {module}.{name}")
        return super().find_class(module, name)


def _read_index(path: Path) -> Metadata:
    with (path / _INDEX).open("rb") as file:
        index = _IndexUnpickler(file).load()
    if not isinstance(index, Metadata):
        raise ValueError("its index is none")
    entries = index.state_dict_metadata.values()
    if not all(isinstance(entry, TensorStorageMetadata) for entry in entries):
        raise ValueError("its index announces more than tensors")
    if any("/" in info.relative_path for info in index.storage_data.values()):
        raise ValueError("its index names files elsewhere")
    return index


class _PartsReader(FileSystemReader):
    """Reads parts by an index that was checked."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        index = _read_index(Path(self.path))
        index.storage_meta = index.storage_meta or StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


class _WholeReader(StorageReader):
    """Hands out slices of tensors that were saved whole in one file."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing to forget."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata({name: _one_chunk(value) for name, value in self._tensors.items()})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, **_: Any) -> None:
        """Nothing to open."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            piece = self._tensors[item.storage_index.fqn]
            for dim, (offset, length) in enumerate(
                zip(item.storage_offsets, item.lengths, strict=True)
            ):
                piece = piece.narrow(dim, offset, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(piece)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def _one_chunk(tensor: torch.Tensor) -> TensorStorageMetadata:
    chunk = ChunkStorageMetadata(torch.Size([0] * tensor.ndim), tensor.size())
    return TensorStorageMetadata(
        TensorProperties.create_from_tensor(tensor), tensor.size(), [chunk]
    )


def save_parts(folder: Path, tensors: dict[str, torch.Tensor], group: Any) -> None:
    """Write this worker's parts of the tensors; returns when all workers' are written.

    Raises:
        CheckpointException: A worker could not write its part (a RuntimeError for every worker).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            save(tensors, checkpoint_id=folder, process_group=group)
    except CheckpointException as error:
        reasons = "; ".join(f"worker {rank}: {why[0]}" for rank, why in error.failures.items())
        raise RuntimeError(reasons) from error


def saved_shapes(path: Path, whole: dict[str, torch.Tensor] | None) -> dict[str, torch.Size]:
    """Return the whole shape of every tensor of a checkpoint, by name."""
    if whole is not None:
        return {name: tensor.shape for name, tensor in whole.items()}
    return {
        name: entry.size
        for name, entry in _read_index(path).state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def load_parts(
    path: Path, targets: dict[str, torch.Tensor], whole: dict[str, torch.Tensor] | None
) -> None:
    """Fill tensors in place with the parts of saved ones that they hold.

    Args:
        path: The checkpoint.
        targets: Tensors by name; a DTensor receives its worker's part.
        whole: The tensors of a checkpoint that one worker wrote, else None.
    """
    reader = _PartsReader(path) if whole is None else _WholeReader(whole)
    alone = not dist.is_initialized()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(targets, storage_reader=reader, no_dist=alone)
    except CheckpointException as error:
        reasons = "; ".join(f"worker {rank}: {why[0]}" for rank, why in error.failures.items())
        raise RuntimeError(reasons) from error
