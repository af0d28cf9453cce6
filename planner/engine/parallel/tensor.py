"""Tensor and sequence parallelism: the workers of a group hold a part of every matrix.

Megatron's layout (Shoeybi et al., 2019; sequence parallelism: Korthikanti et al., 2022): queries,
keys, values and the MLP's first matrices are split by columns (output channels), the second ones
by rows, the embedding and the head by tokens of the vocabulary. What enters such a pair is copied
(or gathered along the sequence), what leaves it is summed (or summed and scattered).

B sequences, T tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from planner.engine.models.layers import Linear
from planner.engine.models.transformer import Transformer
from planner.engine.parallel.groups import Groups

__all__ = ["TensorParallel", "parallel_cross_entropy"]


class _Copy(torch.autograd.Function):
    """Identity; sums the gradient over the group."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _summed(gradient, ctx.group), None


class _Reduce(torch.autograd.Function):
    """Sum over the group; passes the gradient on."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class _Gather(torch.autograd.Function):
    """Gather parts of the sequence; sums and scatters the gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _scattered(gradient, ctx.group), None


class _Scatter(torch.autograd.Function):
    """Sum over the group and keep a part of the sequence; gathers the gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _scattered(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _gathered(gradient, ctx.group), None


def _summed(x: torch.Tensor, group: Any) -> torch.Tensor:
    result = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, group=group)
    return result


def _gathered(x_BTD: torch.Tensor, group: Any) -> torch.Tensor:
    """Return (B, T, D) from parts (B, T / workers, D)."""
    part = x_BTD.transpose(0, 1).contiguous()
    whole = part.new_empty((part.shape[0] * dist.get_world_size(group), *part.shape[1:]))
    dist.all_gather_single(whole, part, group=group)
    return whole.transpose(0, 1).contiguous()


def _scattered(x_BTD: torch.Tensor, group: Any) -> torch.Tensor:
    """Return this worker's part (B, T / workers, D) of the sum."""
    whole = x_BTD.transpose(0, 1).contiguous()
    part = whole.new_empty((whole.shape[0] // dist.get_world_size(group), *whole.shape[1:]))
    dist.reduce_scatter_single(part, whole, group=group)
    return part.transpose(0, 1).contiguous()


class TensorParallel:
    """Splits a model over one tensor group."""

    def __init__(self, groups: Groups) -> None:
        self.mesh = groups.sub_mesh("tensor")
        self.group = groups.group("tensor")
        self.rank, self.size = groups.rank("tensor"), groups.layout.tensor_parallel
        self.sequence = groups.layout.sequence_parallel

    def apply(self, model: Transformer) -> None:
        """Replace parameters by this worker's parts and put the communication in place."""
        if model.embedding is not None:
            self._split(model.embedding, "weight", 0)
            rows = model.embedding.num_embeddings // self.size
            model.embedding.first_row = self.rank * rows
            model.embedding.register_forward_hook(lambda _m, _a, out: self._leave(out))
        if model.positions is not None and self.sequence:
            model.positions.part, model.positions.num_parts = self.rank, self.size
        for block in model.layers.children():
            self._split_pair(block.get_submodule("attention"), ("wq", "wk", "wv"), "wo")
            self._split_mlp(block.get_submodule("mlp"))
        if model.head is not None:
            self._split(model.head, "weight", 0)
        if model.norm is not None:
            model.norm.register_forward_hook(lambda _m, _a, out: self._enter(out))

    def _split_mlp(self, mlp: nn.Module) -> None:
        first = ("w1",) if mlp.w3 is None else ("w1", "w3")
        self._split_pair(mlp, first, "w2")

    def _split_pair(self, module: nn.Module, first: tuple[str, ...], last: str) -> None:
        for name in first:
            linear = module.get_submodule(name)
            self._split(linear, "weight", 0)
            if linear.bias is not None:
                self._split(linear, "bias", 0)
        second = module.get_submodule(last)
        if not isinstance(second, Linear):
            raise TypeError(f"{last} must be a linear layer to be split by rows")
        self._split(second, "weight", 1)
        second.adds_bias = False
        module.register_forward_pre_hook(lambda _m, args: (self._enter(args[0]), *args[1:]))
        module.register_forward_hook(lambda _m, _a, out: self._leave(out, second.bias))

    def _split(self, module: nn.Module, name: str, dim: int) -> None:
        """Replace a parameter by a DTensor that holds this worker's part of it."""
        whole = module.get_parameter(name)
        part = whole.detach().chunk(self.size, dim)[self.rank].contiguous()
        spread = DTensor.from_local(
            part, self.mesh, [Shard(dim)],
            run_check=False, shape=whole.shape, stride=whole.stride(),
        )  # fmt: skip
        module.register_parameter(name, nn.Parameter(spread))

    def _enter(self, x: torch.Tensor) -> torch.Tensor:
        return _Gather.apply(x, self.group) if self.sequence else _Copy.apply(x, self.group)

    def _leave(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        x = _Scatter.apply(x, self.group) if self.sequence else _Reduce.apply(x, self.group)
        return x if bias is None else x + bias.to(x.dtype)


def has_partial_gradient(name: str) -> bool:
    """Return whether a parameter's gradient is a part of the sum under sequence parallelism.

    Norms, positions and the biases of row-split layers see a part of the sequence only.
    """
    return (
        "norm" in name or name.startswith("positions.") or name.endswith((".wo.bias", ".w2.bias"))
    )


class _ParallelCrossEntropy(torch.autograd.Function):
    """Cross entropy over logits that are split by tokens of the vocabulary."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, group: Any, smoothing: float
    ) -> torch.Tensor:
        width = logits.shape[-1]
        vocabulary = width * dist.get_world_size(group)
        local = targets - dist.get_rank(group) * width
        inside = (local >= 0) & (local < width)
        safe = local.clamp(0, width - 1).unsqueeze(-1)
        largest = logits.amax(-1)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        exponents = (logits - largest.unsqueeze(-1)).exp()
        chosen = logits.gather(-1, safe).squeeze(-1) * inside
        sums = torch.stack([exponents.sum(-1), chosen, logits.sum(-1)])
        dist.all_reduce(sums, group=group)
        log_sum = sums[0].log() + largest
        ctx.save_for_backward(exponents / sums[0].unsqueeze(-1), safe, inside)
        ctx.smoothing, ctx.vocabulary = smoothing, vocabulary
        return log_sum - (1 - smoothing) * sums[1] - smoothing * sums[2] / vocabulary

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        shares, safe, inside = ctx.saved_tensors
        result = shares - ctx.smoothing / ctx.vocabulary
        result.scatter_add_(-1, safe, -(1 - ctx.smoothing) * inside.unsqueeze(-1).to(result.dtype))
        return result * gradient.unsqueeze(-1), None, None, None


def parallel_cross_entropy(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, group: Any, smoothing: float = 0.0
) -> torch.Tensor:
    """Return the loss of every row (N,) in nats, where each worker holds V / workers columns."""
    return _ParallelCrossEntropy.apply(logits_NV, targets_N, group, smoothing)
