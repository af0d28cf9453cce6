"""Losses in nats per token, over whole logits or over logits split by the vocabulary.

B sequences, T tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from planner.engine.parallel.groups import Groups

__all__ = ["TokenLoss", "make_token_loss"]

TokenLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits (B, T, V) and targets (B, T) to losses (B, T) in fp32."""


def make_token_loss(groups: Groups, smoothing: float = 0.0) -> TokenLoss:
    """Return the loss of every token for a layout.

    Args:
        groups: The layout; a tensor group holds its part of V each.
        smoothing: Share of the target's probability that is spread over the vocabulary
            (Szegedy et al., 2016, section 7).
    """
    group = groups.group("tensor")
    if group is None:
        return lambda logits, targets: F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), reduction="none",
            label_smoothing=smoothing,
        ).view_as(targets)  # fmt: skip
    from planner.engine.parallel.tensor import parallel_cross_entropy

    return lambda logits, targets: parallel_cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), group, smoothing
    ).view_as(targets)
