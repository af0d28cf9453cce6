"""Mixture-of-experts MLP: every token passes a few of many MLPs, chosen by a router.

Routing drops no token, and the balance loss is one of every sequence, so neither depends on how
sequences are spread over micro-batches and workers.

B sequences, T tokens, D channels, F width of an expert, E experts, N = B T k routed copies.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from planner.engine.models.layers import held
from planner.trial import ModelConfig

__all__ = ["Experts", "ExpertsMlp"]


class Experts(nn.Module):
    """The matrices of all experts; under expert parallelism, of this worker's run of them."""

    group: Any = None
    """The workers over which experts are spread."""

    def __init__(self, model: ModelConfig, num_experts: int) -> None:
        super().__init__()
        wide, narrow = model.ff_width, model.d_model
        self.w1 = nn.Parameter(torch.empty(num_experts, wide, narrow))
        self.w2 = nn.Parameter(torch.empty(num_experts, narrow, wide))
        self.w3 = (
            nn.Parameter(torch.empty(num_experts, wide, narrow)) if model.mlp == "gated" else None
        )

    def forward(self, x_ND: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
        """Return the experts' outputs (N, D) for tokens that are sorted by expert.

        Args:
            x_ND: The tokens of expert 0, then those of expert 1, and so on.
            counts_E: Tokens of each expert.
        """
        if self.group is not None:
            return self._exchange(x_ND, counts_E)
        return self._compute(x_ND, counts_E)

    def _compute(self, x_ND: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
        w1, w2 = held(self.w1, x_ND.dtype), held(self.w2, x_ND.dtype)
        w3 = None if self.w3 is None else held(self.w3, x_ND.dtype)
        outputs = []
        for expert, part in enumerate(x_ND.split(counts_E.tolist())):
            inner = F.linear(part, w1[expert])
            inner = F.gelu(inner) if w3 is None else F.silu(inner) * F.linear(part, w3[expert])
            outputs.append(F.linear(inner, w2[expert]))
        return torch.cat(outputs)

    def _exchange(self, x_ND: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
        """Send every token to the worker of its expert, compute there, and send it back."""
        workers = dist.get_world_size(self.group)
        incoming = torch.empty_like(counts_E)
        dist.all_to_all_single(incoming, counts_E, group=self.group)
        per_source = incoming.view(workers, -1)  # [source, local expert]
        sent = counts_E.view(workers, -1).sum(1).tolist()
        received = per_source.sum(1).tolist()
        arrived = _AllToAll.apply(x_ND, sent, received, self.group)
        by_expert = _order_by_expert(per_source)
        computed = self._compute(arrived[by_expert], per_source.sum(0))
        returned = torch.empty_like(computed).index_copy(0, by_expert, computed)
        return _AllToAll.apply(returned, received, sent, self.group)


def _order_by_expert(per_source: torch.Tensor) -> torch.Tensor:
    """Return the order that sorts tokens, which lie by source and then expert, by expert.

    >>> _order_by_expert(torch.tensor([[1, 2], [1, 0]])).tolist()
    [0, 3, 1, 2]
    """
    experts = torch.arange(per_source.shape[1], device=per_source.device)
    labels = experts.repeat(per_source.shape[0]).repeat_interleave(per_source.flatten())
    return labels.argsort(stable=True)


class _AllToAll(torch.autograd.Function):
    """Exchange of rows in uneven shares; the gradient goes the other way."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, sent: list[int], received: list[int], group: Any
    ) -> torch.Tensor:
        ctx.shares, ctx.group = (sent, received), group
        result = x.new_empty((sum(received), *x.shape[1:]))
        dist.all_to_all_single(result, x.contiguous(), received, sent, group=group)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        sent, received = ctx.shares
        result = gradient.new_empty((sum(sent), *gradient.shape[1:]))
        dist.all_to_all_single(result, gradient.contiguous(), sent, received, group=ctx.group)
        return result, None, None, None


class _AddLoss(torch.autograd.Function):
    """Identity on the activations; gives a further loss a gradient of 1 in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (loss,) = ctx.saved_tensors
        return gradient, torch.ones_like(loss)


class ExpertsMlp(nn.Module):
    """Router and experts (Fedus et al., 2022, for one expert a token; Jiang et al., 2024, for more)."""

    def __init__(self, model: ModelConfig, num_experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(model.d_model, num_experts, bias=False)
        self.experts = Experts(model, num_experts)
        self.num_experts, self.per_token = num_experts, model.experts_per_token
        self.balance = model.router_balance_weight

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return (B, T, D)."""
        weight = held(self.router.weight, torch.float32)
        shares_BTE = F.linear(x_BTD.float(), weight).softmax(-1)
        gates_BTk, chosen_BTk = shares_BTE.topk(self.per_token, dim=-1)
        if self.per_token > 1:
            gates_BTk = gates_BTk / gates_BTk.sum(-1, keepdim=True)
        if self.training and self.balance:
            x_BTD = _AddLoss.apply(x_BTD, self._balance_loss(shares_BTE, chosen_BTk))
        chosen_N = chosen_BTk.flatten()
        order_N = chosen_N.argsort(stable=True)
        counts_E = torch.bincount(chosen_N, minlength=self.num_experts)
        copies_ND = x_BTD.reshape(-1, x_BTD.shape[-1])[order_N // self.per_token]
        outputs_ND = self.experts(copies_ND, counts_E)
        back_ND = torch.empty_like(outputs_ND).index_copy(0, order_N, outputs_ND)
        gated_ND = back_ND * gates_BTk.reshape(-1, 1).to(back_ND.dtype)
        return gated_ND.view(*x_BTD.shape[:2], self.per_token, -1).sum(2)

    def _balance_loss(self, shares_BTE: torch.Tensor, chosen_BTk: torch.Tensor) -> torch.Tensor:
        """Return weight * E * sum_e f_e P_e of every sequence, averaged over sequences.

        f is the share of tokens that an expert gets and P its mean probability (Fedus et al.,
        2022, equation 4; per sequence as in DeepSeek-AI, 2024, equation 17).
        """
        used_BTE = F.one_hot(chosen_BTk, self.num_experts).sum(2).float()
        f_BE = used_BTE.mean(1) / self.per_token
        return self.balance * self.num_experts * (f_BE * shares_BTE.mean(1)).sum(-1).mean()
