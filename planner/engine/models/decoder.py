"""The decoder-only transformer: GPT-2 and Llama are two settings of it.

B sequences, T tokens, D channels, V tokens of the vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from planner.engine.models.layers import Linear, TokenEmbedding, held
from planner.engine.models.transformer import Transformer
from planner.trial import ModelConfig

__all__ = ["Decoder"]


class Decoder(Transformer):
    """A transformer over tokens that predicts the next one."""

    def __init__(self, model: ModelConfig, compute: torch.dtype = torch.float32) -> None:
        super().__init__(model, compute)
        self.embedding = TokenEmbedding(model.vocab_size, model.d_model)
        self.head = None if model.tied_head else Linear(model.d_model, model.vocab_size, bias=False)
        self.is_untied = not model.tied_head

    def forward(
        self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return logits (B, T, V); or hidden states (B, T, D) where a later stage goes on.

        With targets, return the mean loss instead, computed chunk by chunk without ever holding
        the logits.
        """
        x_BTD = self.embed(tokens_BT)
        for layer in self.layers.values():
            x_BTD = layer(x_BTD)
        if self.norm is None:
            return x_BTD
        x_BTD = self.norm(x_BTD)
        if self.logit_scale != 1.0:
            x_BTD = x_BTD * self.logit_scale
        weight = held(self.head_weight, x_BTD.dtype)
        if targets_BT is None:
            return F.linear(x_BTD, weight)
        return F.linear_cross_entropy(
            x_BTD.flatten(0, 1), weight, targets_BT.flatten(),
            options=nn.LinearCrossEntropyOptions(),
        )  # fmt: skip

    def embed(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Return the embedded tokens (B, T, D); what a former stage sends passes unchanged."""
        if self.embedding is None or tokens_BT.is_floating_point():
            return tokens_BT
        x_BTD = self.embedding(tokens_BT)
        if self.positions is not None:
            x_BTD = self.positions(x_BTD)
        x_BTD = x_BTD.to(self.compute)
        return F.dropout(x_BTD, self.dropout, self.training) if self.dropout else x_BTD

    @property
    def head_weight(self) -> torch.Tensor:
        """The matrix (V, D) of the head: its own, or the embedding's."""
        if self.head is not None:
            return self.head.weight
        if self.embedding is None:
            raise LookupError("the stage that computes logits holds the head")
        return self.embedding.weight
