"""Checkpoints: written whole beside the ones before, then renamed, so a kill leaves the last one.

    CHECKPOINT_DIR/step-00000120/state.json   progress, corpus, model and the size of every file
                                 tensors.pt   parameters and optimizer state by name, or
                                 .metadata, *.distcp   the same by torch.distributed.checkpoint

Tensors carry the same names in every layout (`model.<parameter>`,
`optimizer.<parameter>.<state>`, `compression.<parameter>.<state>`), so what one layout saved, any
other loads. A worker that holds everything writes the one file, which takes a few milliseconds;
workers that hold parts write them side by side. Loading admits tensors and nothing else.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from planner.engine.parallel.workers import Workers
from planner.engine.timers import CHECKPOINT_THREAD
from planner.errors import ConfigError, TrialError

__all__ = ["Checkpoints", "NamedParameters", "Saved", "check_same", "load_newest", "newest"]

_STATE: Final = "state.json"
_TENSORS: Final = "tensors.pt"
_KEPT: Final = 2
"""Newest checkpoints that are kept."""

NamedParameters = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What a checkpoint says beside its tensors."""

    step: int
    sequences: int
    """Global index of the next sample."""
    train_seconds: float
    elapsed_seconds: float
    compile_seconds: float = 0.0
    part_seconds: dict[str, float] = field(default_factory=dict)
    """Of waiting for data, communication and the optimizer."""
    first_loss: float
    best_val_loss: float | None = None
    reports_since_best: int = 0
    loss_scale: tuple[float, int] | None = None
    """Of fp16: the factor, and the steps since it changed."""
    corpus_hash: str
    model: dict[str, Any]
    """The ModelConfig as plain data."""
    seed: int
    report: dict[str, Any] = field(default_factory=dict)
    """The last report, so that a finished trial can be read again."""
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of every other file of the checkpoint."""


def named_tensors(
    named: NamedParameters,
    optimizer: torch.optim.Optimizer,
    compression: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Return every tensor of the training state that this worker holds, by its name."""
    tensors = {f"compression.{name}": tensor for name, tensor in compression.items()}
    for name, parameter in named:
        tensors[f"model.{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
    return tensors


class Checkpoints:
    """Writes the checkpoints of one trial; every call is collective.

    Args:
        folder: Where they go.
        workers: This worker and the others.
        in_parts: Whether workers hold parts, and write them side by side.
        in_background: Whether training goes on while a checkpoint is written.
    """

    def __init__(
        self, folder: Path, workers: Workers, *, in_parts: bool, in_background: bool
    ) -> None:
        self._folder, self._workers = folder, workers
        self._in_parts, self._in_background = in_parts, in_background
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._group = workers.new_group() if in_parts and in_background else None

    def save(
        self,
        saved: Saved,
        named: NamedParameters,
        optimizer: torch.optim.Optimizer,
        compression: Mapping[str, torch.Tensor],
    ) -> None:
        """Write a checkpoint, or begin to; the one before is complete when this returns.

        Raises:
            TrialError: This or the former one could not be written; older ones stay usable.
        """
        self.wait()
        if not self._in_parts and not self._workers.is_first:
            return
        tensors = named_tensors(named, optimizer, compression)
        if not self._in_background:
            self._write(saved, tensors)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=CHECKPOINT_THREAD)
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        self._writing = self._thread.submit(self._write, saved, copies)

    def wait(self) -> None:
        """Return once the checkpoint in the making is complete.

        Raises:
            TrialError: It could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Wait, and end the thread that writes."""
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()

    def _write(self, saved: Saved, tensors: dict[str, torch.Tensor]) -> None:
        target = self._folder / f"step-{saved.step:08d}"
        writing = self._folder / f".writing-{saved.step:08d}"
        try:
            if self._workers.is_first:  # the others write once all have met
                self._drop_unfinished()
            writing.mkdir(parents=True, exist_ok=True)
            if self._in_parts:
                from planner.engine.sharded_checkpoint import save_parts

                save_parts(writing, tensors, self._group)
            else:
                torch.save(tensors, writing / _TENSORS)
            if self._workers.is_first:
                self._complete(writing, target, saved)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(writing, ignore_errors=True)
            raise TrialError(
                f"the checkpoint of step {saved.step} could not be written to {self._folder}: "
                f"{_first_line(error)}.",
                hint="Free disk space; the checkpoint before is kept.",
            ) from error

    def _drop_unfinished(self) -> None:
        """Remove what a kill left behind: files of another layout would become part of the next one."""
        for left in self._folder.glob(".writing-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _complete(self, writing: Path, target: Path, saved: Saved) -> None:
        """Give a written checkpoint its name and drop the oldest ones."""
        sizes = {path.name: path.stat().st_size for path in writing.iterdir()}
        state = asdict(saved) | {"files": sizes}
        (writing / _STATE).write_text(json.dumps(state))
        if target.exists():
            shutil.rmtree(target)
        writing.rename(target)
        for old in _complete_ones(self._folder)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)


def _complete_ones(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder from oldest to newest."""
    return sorted(path for path in folder.glob("step-*") if (path / _STATE).is_file())


def newest(folder: Path | None) -> Path | None:
    """Return the newest complete checkpoint of a folder, or None."""
    found = [] if folder is None else _complete_ones(folder)
    return found[-1] if found else None


def load_newest(
    folder: Path | None,
    named: NamedParameters,
    optimizer: torch.optim.Optimizer,
    compression: Mapping[str, torch.Tensor],
    check: Callable[[Saved], None],
) -> Saved | None:
    """Load the newest checkpoint into parameters and optimizer, whatever layout saved it.

    Args:
        folder: Where checkpoints are.
        named: Parameters to write into.
        optimizer: Whose state to replace.
        compression: What compressed gradients owe, to write into; what the checkpoint does not
            know stays.
        check: Raises where what the checkpoint says does not suit.

    Returns:
        What it says, or None where there is none; collective where workers hold parts.

    Raises:
        TrialError: The checkpoint is damaged, holds more than tensors, or another model.
    """
    path = newest(folder)
    if path is None:
        return None
    try:
        saved = Saved(**json.loads((path / _STATE).read_text()))
        check(saved)
        _check_sizes(path, saved.files)
        _load_tensors(path, named, optimizer, compression)
    except ConfigError:
        raise
    except (
        OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, RuntimeError,
        pickle.UnpicklingError,
    ) as error:  # fmt: skip
        raise TrialError(
            f"a checkpoint must be whole and hold tensors alone: {path}: {_first_line(error)}.",
            hint="Delete that folder; training goes on from the checkpoint before.",
        ) from error
    return saved


def _check_sizes(path: Path, files: dict[str, int]) -> None:
    for name, size in files.items():
        found = (path / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes, {size} were written")


def _load_tensors(
    path: Path,
    named: NamedParameters,
    optimizer: torch.optim.Optimizer,
    compression: Mapping[str, torch.Tensor],
) -> None:
    whole = None
    if (path / _TENSORS).exists():
        whole = torch.load(path / _TENSORS, map_location="cpu", weights_only=True, mmap=True)
        if not all(isinstance(value, torch.Tensor) for value in whole.values()):
            raise ValueError("it holds more than tensors")
        if not any(hasattr(parameter, "placements") for _, parameter in named):
            _restore(named, optimizer, compression, whole)
            return
    from planner.engine.sharded_checkpoint import load_parts, saved_shapes

    shapes = saved_shapes(path, whole)
    targets = _targets(named, optimizer, shapes)
    kept = {f"compression.{name}": value for name, value in compression.items()}
    targets |= {n: torch.zeros_like(v) for n, v in kept.items() if shapes.get(n) == v.shape}
    load_parts(path, targets, whole)
    _restore(named, optimizer, compression, targets)


def _targets(
    named: NamedParameters, optimizer: torch.optim.Optimizer, shapes: dict[str, torch.Size]
) -> dict[str, torch.Tensor]:
    """Return empty tensors, laid out as this worker's are, for what a checkpoint holds of them."""
    updated = _updated(optimizer)
    targets: dict[str, torch.Tensor] = {}
    for name, parameter in named:
        targets[f"model.{name}"] = torch.zeros_like(parameter.detach())
        if parameter not in updated:
            continue
        prefix = f"optimizer.{name}."
        for key in (key for key in shapes if key.startswith(prefix)):
            like = shapes[key] == parameter.shape and parameter.ndim > 0
            targets[key] = (
                torch.zeros_like(parameter.detach()) if like else torch.zeros(shapes[key])
            )
    return targets


def _updated(optimizer: torch.optim.Optimizer) -> set[torch.Tensor]:
    return {parameter for group in optimizer.param_groups for parameter in group["params"]}


@torch.no_grad()
def _restore(
    named: NamedParameters,
    optimizer: torch.optim.Optimizer,
    compression: Mapping[str, torch.Tensor],
    tensors: dict[str, torch.Tensor],
) -> None:
    """Write saved tensors into parameters, optimizer state and what compression owes."""
    for name, own in compression.items():
        kept = tensors.get(f"compression.{name}")
        if kept is not None and kept.shape == own.shape:
            own.copy_(kept)
    updated = _updated(optimizer)
    for name, parameter in named:
        value = tensors[f"model.{name}"]
        if value.shape != parameter.shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, the model {tuple(parameter.shape)}"
            )
        parameter.copy_(value)
        prefix = f"optimizer.{name}."
        state = {
            key.removeprefix(prefix): _on_device(tensor, parameter)
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        }
        if state and parameter in updated:
            optimizer.state[parameter] = state


def _on_device(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    return tensor.to(parameter.device, copy=True)


def check_same(saved: Saved, *, model: dict[str, Any], seed: int, corpus_hash: str) -> None:
    """Refuse to resume a checkpoint of another model, seed or corpus.

    Raises:
        ConfigError: One of them differs.
    """
    pairs = {
        "model": (saved.model, model),
        "train.seed": (saved.seed, seed),
        "corpus hash": (saved.corpus_hash, corpus_hash),
    }
    for name, (before, now) in pairs.items():
        if before != now:
            raise ConfigError(
                f"a trial resumes with the same {name}: the checkpoint has {before}, now {now}.",
                hint="Use another checkpoint folder, or delete this one to start anew.",
            )
