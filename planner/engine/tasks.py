"""Tasks: what a model is trained to do. A task is data, a loss and a metric.

B sequences, T tokens, D channels, V tokens of the vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from planner.engine.data.windows import Batch, Windows
from planner.engine.models.decoder import Decoder

__all__ = ["NextToken"]


class NextToken:
    """Predict every token from those before it; loss and metric are nats per token."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def training_loss(self, model: Decoder, batch: Batch) -> torch.Tensor:
        """Return the mean loss of a batch, a scalar in fp32."""
        tokens_BT, targets_BT = batch
        logits_BTV = model(tokens_BT)
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())

    def validation_batches(self, rank: int, num_ranks: int, size: int) -> list[np.ndarray]:
        """Return the numbers of the validation windows that a worker reads, batch by batch.

        Every worker gets as many batches of the same size; -1 stands for no window.
        """
        total = len(self.windows.validation_starts)
        per_batch = size * num_ranks
        padded = np.full(-(-total // per_batch) * per_batch, -1, dtype=np.int64)
        padded[:total] = np.arange(total)
        return list(padded.reshape(-1, num_ranks, size)[:, rank])

    def validation_loss(self, model: Decoder, numbers: np.ndarray) -> torch.Tensor:
        """Return the summed loss and the number of tokens of the numbered windows, in fp64."""
        real = torch.from_numpy(numbers >= 0)
        tokens_BT, targets_BT = self.windows.validation(np.maximum(numbers, 0))
        device = next(model.parameters()).device
        logits_BTV = model(tokens_BT.to(device))
        losses_BT = F.cross_entropy(
            logits_BTV.flatten(0, 1).float(), targets_BT.flatten().to(device), reduction="none"
        ).view_as(targets_BT)
        losses_B = losses_BT.double().sum(1) * real.to(device)
        tokens = real.sum().double() * targets_BT.shape[1]
        return torch.stack([losses_B.sum(), tokens.to(device)])
