"""Tasks: what a model is trained to do. A task is data, a loss and a metric, registered by name.

B samples, T tokens, V tokens of the vocabulary, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from planner.engine.data.images import Images
from planner.engine.data.windows import Batch, Windows
from planner.engine.losses import make_token_loss
from planner.engine.parallel.groups import Groups
from planner.trial import ModelConfig, TrialConfig

__all__ = [
    "TASKS",
    "Classification",
    "NextToken",
    "Samples",
    "Task",
    "bits_per_byte",
    "load_samples",
    "make_task",
]

Numbers = npt.NDArray[np.int64]


class Samples(Protocol):
    """What a trial reads: pure functions of indices, the same on every worker."""

    @property
    def content_hash(self) -> str:
        """Hash of everything that is read."""

    @property
    def num_validation(self) -> int:
        """Samples that a validation reads, over all workers."""

    def training(self, first_sample: int, num_sequences: int) -> Batch:
        """Return the training samples from a global index on."""

    def validation(self, numbers: Numbers) -> Batch:
        """Return the numbered validation samples."""

    def facts(self, num_sequences: int) -> dict[str, float]:
        """Return what is recorded of the data after so many training samples."""


class Task(Protocol):
    """What the training loop asks of a task. Sums are added over batches and workers."""

    num_sums: int

    def mean_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean training loss of a micro-batch, a scalar in fp32."""

    def training_batch(self, first_sample: int, num_sequences: int) -> Batch:
        """Return the samples from a global index on."""

    def validation_numbers(self, rank: int, num_ranks: int, size: int) -> list[Numbers]:
        """Return the numbers of the validation samples that a worker reads, batch by batch."""

    def validation_batch(self, numbers: Numbers) -> Batch:
        """Return the numbered validation samples."""

    def validation_sums(
        self, outputs: torch.Tensor, targets: torch.Tensor, numbers: Numbers
    ) -> torch.Tensor:
        """Return what to add up over the samples that count, fp64 of shape (num_sums,)."""

    def measures(self, sums: Sequence[float]) -> dict[str, float]:
        """Return `val_loss` and the task's other metrics from the sums."""


class NextToken:
    """Predict every token from those before it; the loss is in nats per token."""

    def __init__(self, config: TrialConfig, samples: Windows, groups: Groups) -> None:
        self._windows = samples
        self._training = make_token_loss(groups, config.optimizer.label_smoothing)
        self._validation = make_token_loss(groups)
        self._num_sources = len(config.data.sources)
        self.num_sums = 2 * self._num_sources

    def mean_loss(self, logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Return the mean training loss of a micro-batch, a scalar in fp32."""
        return self._training(logits_BTV, targets_BT).mean()

    def training_batch(self, first_sample: int, num_sequences: int) -> Batch:
        """Return the samples from a global index on."""
        return self._windows.training(first_sample, num_sequences)

    def validation_numbers(self, rank: int, num_ranks: int, size: int) -> list[Numbers]:
        """Return the numbers of the validation windows that a worker reads, batch by batch."""
        return _numbers(self._windows.num_validation, rank, num_ranks, size)

    def validation_batch(self, numbers: Numbers) -> Batch:
        """Return the numbered validation windows; -1 reads window 0, which is not counted."""
        return self._windows.validation(np.maximum(numbers, 0))

    def validation_sums(
        self, logits_BTV: torch.Tensor, targets_BT: torch.Tensor, numbers: Numbers
    ) -> torch.Tensor:
        """Return the summed loss and the number of tokens of every source."""
        losses_B = self._validation(logits_BTV, targets_BT).double().sum(1)
        sums = torch.zeros(self._num_sources, 2, dtype=torch.float64, device=losses_B.device)
        sources = self._windows.validation_windows[np.maximum(numbers, 0), 0]
        for source in range(self._num_sources):
            counts_B = torch.from_numpy((numbers >= 0) & (sources == source)).to(losses_B.device)
            sums[source, 0] = (losses_B * counts_B).sum()
            sums[source, 1] = counts_B.sum() * targets_BT.shape[1]
        return sums.flatten()

    def measures(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the loss in nats per token and, of text, in bits per byte, by source and pooled."""
        windows = self._windows
        losses = [total / tokens for total, tokens in zip(sums[::2], sums[1::2], strict=True)]
        found = {"val_loss": float(np.average(losses, weights=windows.validation_weights))}
        if len(losses) > 1:
            found |= {f"val_loss.{n}": loss for n, loss in zip(windows.names, losses, strict=True)}
        sizes = [corpus.bytes_per_token for corpus in windows.corpora]
        bits = [bits_per_byte(x, s) for x, s in zip(losses, sizes, strict=True) if s is not None]
        if len(bits) == len(losses):
            pooled = np.average(bits, weights=windows.validation_weights)
            found["val_bits_per_byte"] = float(pooled)
        return found


class Classification:
    """Find the class of every image; the loss is the cross entropy in nats per image."""

    num_sums = 3

    def __init__(self, config: TrialConfig, samples: Samples, groups: Groups) -> None:
        self._samples = samples
        self._smoothing = config.optimizer.label_smoothing

    def mean_loss(self, logits_BK: torch.Tensor, targets_B: torch.Tensor) -> torch.Tensor:
        """Return the mean training loss of a micro-batch, a scalar in fp32."""
        return F.cross_entropy(logits_BK.float(), targets_B, label_smoothing=self._smoothing)

    def training_batch(self, first_sample: int, num_sequences: int) -> Batch:
        """Return the samples from a global index on."""
        return self._samples.training(first_sample, num_sequences)

    def validation_numbers(self, rank: int, num_ranks: int, size: int) -> list[Numbers]:
        """Return the numbers of the validation images that a worker reads, batch by batch."""
        return _numbers(self._samples.num_validation, rank, num_ranks, size)

    def validation_batch(self, numbers: Numbers) -> Batch:
        """Return the numbered validation images; -1 reads image 0, which is not counted."""
        return self._samples.validation(np.maximum(numbers, 0))

    def validation_sums(
        self, logits_BK: torch.Tensor, targets_B: torch.Tensor, numbers: Numbers
    ) -> torch.Tensor:
        """Return the summed loss, the number of classes found and the number of images."""
        counts_B = torch.from_numpy(numbers >= 0).to(logits_BK.device)
        losses_B = F.cross_entropy(logits_BK.float(), targets_B, reduction="none").double()
        found_B = logits_BK.argmax(1) == targets_B
        return torch.stack(
            [(losses_B * counts_B).sum(), (found_B & counts_B).sum(), counts_B.sum()]
        ).double()

    def measures(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the loss in nats per image and the share of classes found."""
        total, found, number = sums
        return {"val_loss": total / number, "val_accuracy": found / number}


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Return a loss in bits per byte of text: loss / (ln 2 * bytes per token).

    Unlike nats per token it compares over tokenizers (Gao et al., 2020, "The Pile", section 3.1).

    >>> round(bits_per_byte(2.0, 4.0), 4)
    0.7213
    """
    return nats_per_token / (math.log(2.0) * bytes_per_token)


def _numbers(total: int, rank: int, num_ranks: int, size: int) -> list[Numbers]:
    """Return a worker's share of the numbers below a total, batch by batch.

    Every worker gets as many batches of the same size; -1 stands for no sample.
    """
    per_batch = size * num_ranks
    padded = np.full(-(-total // per_batch) * per_batch, -1, dtype=np.int64)
    padded[:total] = np.arange(total)
    return list(padded.reshape(-1, num_ranks, size)[:, rank])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    load: Callable[[TrialConfig], Samples]
    blank: Callable[[ModelConfig, int], Batch]
    """A batch of so many samples that holds nothing, for tracing."""
    make: Callable[..., Task]


TASKS: Final[dict[str, _Kind]] = {
    "next-token": _Kind(load=Windows.load, blank=Windows.blank, make=NextToken),
    "classification": _Kind(load=Images.load, blank=Images.blank, make=Classification),
}
"""Name in `train.task` -> how its data are loaded, and what makes it from them."""


def load_samples(config: TrialConfig) -> Samples:
    """Return the data of a trial.

    Raises:
        ConfigError: They cannot be used.
    """
    return TASKS[config.task].load(config)


def make_task(config: TrialConfig, samples: Samples, groups: Groups) -> Task:
    """Return the task of a trial on its data."""
    return TASKS[config.task].make(config, samples, groups)
