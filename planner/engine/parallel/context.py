"""Context parallelism: the workers of a group hold parts of the same sequences.

Every worker computes its part of the tokens, and attends over all keys and values, which it gathers
in every layer (Grattafiori et al., 2024, "The Llama 3 herd of models", section 3.3.2). A causal
token attends to those before it, so later tokens cost more: the sequence is cut into two chunks per
worker, and worker r of c holds chunks r and 2 c - 1 - r, which cost the same together for every r.

B sequences, T tokens, H heads, K channels of a head; a worker holds T / c tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from planner.engine.models.layers import Attention

if TYPE_CHECKING:
    from planner.engine.models.transformer import Transformer
    from planner.engine.parallel.groups import Groups

__all__ = ["ContextPart", "split_context"]


class _Gather(torch.autograd.Function):
    """Stack the workers' tensors; sums their gradients and returns to each its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        size = dist.get_world_size(group)
        whole = x.new_empty((size * x.shape[0], *x.shape[1:]))
        dist.all_gather_single(whole, x.contiguous(), group=group)
        return whole.view(size, *x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        own = gradient.new_empty(gradient.shape[1:])
        dist.reduce_scatter_single(own, gradient.flatten(0, 1).contiguous(), group=ctx.group)
        return own, None


@dataclass(frozen=True, slots=True)
class ContextPart:
    """Which tokens of every sequence a worker holds, and how it attends over all of them."""

    rank: int
    size: int
    group: Any

    @classmethod
    def of(cls, groups: Groups) -> ContextPart:
        """Return the part of a worker."""
        size = groups.layout.context_parallel
        return cls(groups.rank("context"), size, groups.group("context"))

    def own(self, x: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Return this worker's tokens out of all, along a dimension.

        >>> ContextPart(rank=1, size=2, group=None).own(torch.arange(8)).tolist()
        [2, 3, 4, 5]
        """
        chunks = x.chunk(2 * self.size, dim)
        return torch.cat([chunks[number] for number in self._numbers], dim)

    @property
    def _numbers(self) -> tuple[int, int]:
        return self.rank, 2 * self.size - 1 - self.rank

    def attend(
        self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        """Return causal attention of this worker's queries over all tokens; a collective call."""
        k_BHTK, v_BHTK = self._in_order(_Gather.apply(torch.stack([k_BHTK, v_BHTK]), self.group))
        length = q_BHTK.shape[2] // 2
        parts = []
        for number, queries in zip(self._numbers, q_BHTK.chunk(2, 2), strict=True):
            seen = (number + 1) * length
            parts.append(
                F.scaled_dot_product_attention(
                    queries, k_BHTK[:, :, :seen], v_BHTK[:, :, :seen],
                    attn_mask=causal_lower_right(length, seen),
                    dropout_p=dropout,
                    enable_gqa=k_BHTK.shape[1] != q_BHTK.shape[1],
                )
            )  # fmt: skip
        return torch.cat(parts, 2)

    def _in_order(self, gathered: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values in the order of the sequence from (worker, key or value, ...)."""
        first, second = gathered.chunk(2, -2)
        chunks = torch.cat([first, second.flip(0)])  # (chunk, key or value, B, H, T of it, K)
        keys, values = chunks.permute(1, 2, 3, 0, 4, 5).flatten(3, 4)
        return keys, values


def split_context(model: Transformer, groups: Groups) -> None:
    """Tell a model which tokens it sees."""
    part = ContextPart.of(groups)
    if model.positions is not None:
        model.positions.context = part
    for module in model.modules():
        if isinstance(module, Attention):
            module.context = part
