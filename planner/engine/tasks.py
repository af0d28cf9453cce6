"""Tasks: what a model is trained to do. A task is data, a loss and a metric.

B sequences, T tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from planner.engine.data.windows import Batch, Windows
from planner.engine.losses import TokenLoss

__all__ = ["NextToken"]


class NextToken:
    """Predict every token from those before it; loss and metric are nats per token."""

    def __init__(self, windows: Windows, training: TokenLoss, validation: TokenLoss) -> None:
        self.windows = windows
        self._training, self._validation = training, validation

    def mean_loss(self, logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Return the mean training loss of a micro-batch, a scalar in fp32."""
        return self._training(logits_BTV, targets_BT).mean()

    def training_batch(self, first_sample: int, num_sequences: int) -> Batch:
        """Return the samples from a global index on."""
        return self.windows.training(first_sample, num_sequences)

    def validation_numbers(
        self, rank: int, num_ranks: int, size: int
    ) -> list[npt.NDArray[np.int64]]:
        """Return the numbers of the validation windows that a worker reads, batch by batch.

        Every worker gets as many batches of the same size; -1 stands for no window.
        """
        total = len(self.windows.validation_starts)
        per_batch = size * num_ranks
        padded = np.full(-(-total // per_batch) * per_batch, -1, dtype=np.int64)
        padded[:total] = np.arange(total)
        return list(padded.reshape(-1, num_ranks, size)[:, rank])

    def validation_batch(self, numbers: npt.NDArray[np.int64]) -> Batch:
        """Return the numbered validation windows; -1 reads window 0, which is not counted."""
        return self.windows.validation(np.maximum(numbers, 0))

    def validation_sums(
        self,
        logits_BTV: torch.Tensor,
        targets_BT: torch.Tensor,
        numbers: npt.NDArray[np.int64],
    ) -> torch.Tensor:
        """Return the summed loss and the number of tokens of the windows that count, in fp64."""
        losses_BT = self._validation(logits_BTV, targets_BT)
        real_B = torch.from_numpy(numbers >= 0).to(losses_BT.device)
        total = (losses_BT.double().sum(1) * real_B).sum()
        return torch.stack([total, real_B.sum().double() * targets_BT.shape[1]])
