"""Checkpoints: written whole beside the ones before, then renamed, so a kill leaves the last one.

    CHECKPOINT_DIR/step-00000120/state.json   progress, corpus and model, as plain data
                                 tensors.pt   parameters and optimizer state by name

Tensors carry the same names in every layout: `model.<parameter>` and
`optimizer.<parameter>.<state>`. Loading admits tensors and nothing else.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from planner.errors import ConfigError, TrialError

__all__ = ["Saved", "load_newest", "named_tensors", "restore", "save"]

_STATE: Final = "state.json"
_TENSORS: Final = "tensors.pt"
_KEPT: Final = 2
"""Newest checkpoints that are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What a checkpoint says beside its tensors."""

    step: int
    sequences: int
    """Global index of the next sample."""
    train_seconds: float
    elapsed_seconds: float
    first_loss: float
    corpus_hash: str
    model: dict[str, Any]
    """The ModelConfig as plain data."""
    seed: int
    report: dict[str, Any] = field(default_factory=dict)
    """The last report, so that a finished trial can be read again."""


NamedParameters = list[tuple[str, nn.Parameter]]


def named_tensors(
    named: NamedParameters, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Return every tensor of the training state by its name."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in named:
        tensors[f"model.{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def restore(
    named: NamedParameters, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Write saved tensors into a model and its optimizer.

    Raises:
        TrialError: A tensor is missing or has another shape.
    """
    with torch.no_grad():
        for name, parameter in named:
            saved = tensors.get(f"model.{name}")
            if saved is None or saved.shape != parameter.shape:
                raise TrialError(
                    f"a checkpoint must hold {name} with shape {tuple(parameter.shape)}: "
                    f"got {None if saved is None else tuple(saved.shape)}.",
                    hint="Delete the checkpoint folder to start anew.",
                )
            parameter.copy_(saved)
            prefix = f"optimizer.{name}."
            state = {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
            if state:
                optimizer.state[parameter] = {
                    key: value.to(parameter.device) if value.ndim else value
                    for key, value in state.items()
                }


def save(folder: Path, saved: Saved, tensors: dict[str, torch.Tensor]) -> Path:
    """Write a checkpoint and drop the oldest ones; return its folder.

    Raises:
        TrialError: It could not be written; checkpoints from before stay usable.
    """
    target = folder / f"step-{saved.step:08d}"
    writing = folder / f".writing-{saved.step:08d}-{os.getpid()}"
    try:
        writing.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, writing / _TENSORS)
        (writing / _STATE).write_text(json.dumps(asdict(saved)))
        if target.exists():
            shutil.rmtree(target)
        writing.rename(target)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(writing, ignore_errors=True)
        raise TrialError(
            f"the checkpoint of step {saved.step} could not be written to {folder}: {error}.",
            hint="Free disk space; the checkpoint before is kept.",
        ) from error
    for old in _complete(folder)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _complete(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder from oldest to newest."""
    return sorted(path for path in folder.glob("step-*") if (path / _STATE).is_file())


def load_newest(folder: Path | None) -> tuple[Saved, dict[str, torch.Tensor]] | None:
    """Return the newest checkpoint of a folder, or None where there is none.

    Raises:
        TrialError: The newest checkpoint is damaged or holds more than tensors.
    """
    if folder is None or not (found := _complete(folder)):
        return None
    newest = found[-1]
    try:
        saved = Saved(**json.loads((newest / _STATE).read_text()))
        tensors = torch.load(newest / _TENSORS, map_location="cpu", weights_only=True)
        if not all(isinstance(value, torch.Tensor) for value in tensors.values()):
            raise ValueError("it holds more than tensors")
    except (
        OSError, ValueError, TypeError, AttributeError, EOFError, RuntimeError,
        pickle.UnpicklingError,
    ) as error:  # fmt: skip
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise TrialError(
            f"a checkpoint must be whole and hold tensors alone: {newest}: {reason}.",
            hint="Delete that folder; training goes on from the checkpoint before.",
        ) from error
    return saved, tensors


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
