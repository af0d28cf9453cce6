"""What the families of transformers share: blocks, positions, a norm and a head, under one naming.

B samples, T tokens.
"""

from __future__ import annotations

import torch
from torch import nn

from planner.engine.models.layers import (
    Block,
    Linear,
    PositionEmbedding,
    TokenEmbedding,
    make_norm,
)
from planner.trial import ModelConfig

__all__ = ["Transformer"]


class Transformer(nn.Module):
    """Blocks with what stands before and after them; families add their ends.

    Layers stand in a ModuleDict under their number in the whole model, so that every parameter has
    the same name in every layout. A pipeline stage is the same model with parts set to None.
    """

    is_untied = True
    """Whether the head's matrix is its own."""

    def __init__(self, model: ModelConfig, compute: torch.dtype) -> None:
        super().__init__()
        self.embedding: TokenEmbedding | None = None
        self.positions: PositionEmbedding | None = (
            PositionEmbedding(model.sequence_length, model.d_model)
            if model.position == "learned"
            else None
        )
        self.layers = nn.ModuleDict({str(i): Block(model) for i in range(model.num_layers)})
        self.norm: nn.Module | None = make_norm(model)
        self.head: Linear | None = None
        self.compute = compute
        self.dropout = model.dropout
        self.logit_scale = 1.0
