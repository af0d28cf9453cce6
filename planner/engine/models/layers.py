"""Blocks of the models. Weights keep their own format; products run in the format of the input.

B sequences, T tokens, D channels, H heads (local to the worker), K channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from planner.trial import ModelConfig

if TYPE_CHECKING:
    from planner.engine.parallel.context import ContextPart

__all__ = [
    "Attention",
    "Block",
    "Linear",
    "Mlp",
    "PositionEmbedding",
    "TokenEmbedding",
    "held",
    "make_norm",
    "rope_tables",
]


Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Input (..., in), weight (out, in) and bias to (..., out)."""


def held(parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the part of a parameter that this worker holds, in a format."""
    to_local = getattr(parameter, "to_local", None)
    return (parameter if to_local is None else to_local()).to(dtype)


class Linear(nn.Linear):
    """Linear layer that casts its fp32 weights to the format of its input."""

    adds_bias = True
    """False where the bias is added after a sum over workers."""
    product: Product | None = None
    """What multiplies, where it is not a product in the input's format."""
    scale: nn.Parameter | None
    """Length of every row, where the weight gives directions alone."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.register_parameter("scale", None)

    def normalise(self) -> None:
        """Learn direction and length of every row apart (Salimans and Kingma, 2016, equation 2).

        Both keep their own names in every layout, as torch's parametrisation would not.
        """
        self.scale = nn.Parameter(torch.empty(self.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in) to (..., out)."""
        bias = None if self.bias is None or not self.adds_bias else held(self.bias, x.dtype)
        weight = held(self.weight, x.dtype)
        if self.scale is not None:
            weight = F.normalize(weight, dim=1) * self.scale.to(x.dtype).unsqueeze(1)
        return F.linear(x, weight, bias) if self.product is None else self.product(x, weight, bias)


class TokenEmbedding(nn.Module):
    """A row per token; a worker may hold a run of the rows, and gives zeros for the others."""

    first_row: int | None = None

    def __init__(self, num_embeddings: int, width: int) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.weight = nn.Parameter(torch.empty(num_embeddings, width))

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Return (B, T, D)."""
        weight = held(self.weight, self.weight.dtype)
        if self.first_row is None:
            return F.embedding(tokens_BT, weight)
        rows = tokens_BT - self.first_row
        inside = (rows >= 0) & (rows < weight.shape[0])
        return F.embedding(rows * inside, weight) * inside.unsqueeze(-1)


class PositionEmbedding(nn.Module):
    """A learned row per position; under sequence parallelism, those of this worker's part."""

    part, num_parts = 0, 1
    context: ContextPart | None = None
    """Which tokens of a sequence there are, where workers share it."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, width))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return the input with its positions added."""
        length = x_BTD.shape[1]
        rows = self.weight if self.context is None else self.context.own(self.weight)
        return x_BTD + rows[self.part * length : (self.part + 1) * length]


class LayerNorm(nn.Module):
    """Layer normalisation in fp32 with an optional bias (Ba et al., 2016)."""

    def __init__(self, width: int, *, bias: bool, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.width, self.epsilon = width, epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, (self.width,), self.weight.to(x.dtype), bias, self.epsilon)


class RmsNorm(nn.Module):
    """Root-mean-square normalisation (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int, *, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.width, self.epsilon = width, epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x, (self.width,), self.weight.to(x.dtype), self.epsilon)


def make_norm(model: ModelConfig) -> nn.Module:
    """Return the normalisation that a model uses."""
    if model.norm == "rmsnorm":
        return RmsNorm(model.d_model)
    return LayerNorm(model.d_model, bias=model.bias)


@lru_cache(maxsize=8)
def rope_tables(
    length: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines of rotary positions, each of shape (T, K / 2).

    Angle of position t and pair i: t * 10000^(-2 i / K) (Su et al., 2021, equation 15).
    """
    rates = 10000.0 ** (
        -torch.arange(0, head_dim, 2, device=device, dtype=torch.float64) / head_dim
    )
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float64), rates)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BHTK: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (i, i + K/2) of every head by their position's angle."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class Attention(nn.Module):
    """Self-attention with grouped keys and values; heads are counted from the tensors."""

    context: ContextPart | None = None
    """Which tokens of a sequence there are, where workers share it."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        width, kv_width = model.d_model, model.kv_heads * model.head_dim
        self.wq = Linear(width, width, bias=model.bias)
        self.wk = Linear(width, kv_width, bias=model.bias)
        self.wv = Linear(width, kv_width, bias=model.bias)
        self.wo = Linear(width, width, bias=model.bias)
        self.head_dim = model.head_dim
        self.uses_rope = model.position == "rope"
        self.is_causal = model.is_causal
        self.dropout = model.dropout

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return (B, T, D)."""
        batch, length = x_BTD.shape[:2]
        q, k, v = (
            projection(x_BTD).view(batch, length, -1, self.head_dim).transpose(1, 2)
            for projection in (self.wq, self.wk, self.wv)
        )
        if self.uses_rope:
            cos, sin = self._angles(length, q)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        dropout = self.dropout if self.training else 0.0
        if self.context is not None:
            out_BHTK = self.context.attend(q, k, v, dropout)
        else:
            out_BHTK = F.scaled_dot_product_attention(
                q, k, v,
                is_causal=self.is_causal, dropout_p=dropout, enable_gqa=k.shape[1] != q.shape[1],
            )  # fmt: skip
        return self.wo(out_BHTK.transpose(1, 2).reshape(batch, length, -1))

    def _angles(self, length: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines (T, K / 2) of the tokens that there are."""
        if self.context is None:
            return rope_tables(length, self.head_dim, like.device, like.dtype)
        whole = length * self.context.size
        cos, sin = rope_tables(whole, self.head_dim, like.device, like.dtype)
        return self.context.own(cos), self.context.own(sin)


class Mlp(nn.Module):
    """Two matrices with GELU, or three with a SiLU gate (Shazeer, 2020)."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.w1 = Linear(model.d_model, model.ff_width, bias=model.bias)
        self.w2 = Linear(model.ff_width, model.d_model, bias=model.bias)
        self.w3 = (
            Linear(model.d_model, model.ff_width, bias=model.bias) if model.mlp == "gated" else None
        )

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return (B, T, D)."""
        if self.w3 is None:
            return self.w2(F.gelu(self.w1(x_BTD)))
        return self.w2(F.silu(self.w1(x_BTD)) * self.w3(x_BTD))


def make_mlp(model: ModelConfig) -> nn.Module:
    """Return the MLP of a block: dense, or a mixture of experts."""
    if model.num_experts is None:
        return Mlp(model)
    from planner.engine.models.experts import ExpertsMlp

    return ExpertsMlp(model, model.num_experts)


Recompute = Callable[[Callable[[torch.Tensor], torch.Tensor], torch.Tensor], torch.Tensor]
"""Runs a function so that its intermediate values are computed again in the backward pass."""


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(model)
        self.attention = Attention(model)
        self.mlp_norm = make_norm(model)
        self.mlp = make_mlp(model)
        self.dropout = model.dropout
        self.recompute: Recompute | None = None
        if model.weight_norm:
            for module in self.modules():
                if isinstance(module, Linear):
                    module.normalise()

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return (B, T, D)."""
        if self.recompute is not None and self.training:
            return self.recompute(self._forward, x_BTD)
        return self._forward(x_BTD)

    def _forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = x_BTD + self._drop(self.attention(self.attention_norm(x_BTD)))
        return x_BTD + self._drop(self.mlp(self.mlp_norm(x_BTD)))

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
