"""Gradients across workers: mean over replicas, sums of partial ones, norm and clipping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import torch

from planner.engine.parallel.groups import Group, sum_in

__all__ = ["local_gradients", "scale_gradients", "squared_norm", "sum_gradients"]

_BUCKET_BYTES: Final = 25 * 2**20
"""Gradients are sent in pieces of about this size, as DistributedDataParallel does."""


def local_gradients(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return the parts of the gradients that this worker holds."""
    found = []
    for parameter in parameters:
        if parameter.grad is not None:
            to_local = getattr(parameter.grad, "to_local", None)
            found.append(parameter.grad if to_local is None else to_local())
    return found


@torch.no_grad()
def sum_gradients(
    parameters: Iterable[torch.Tensor],
    group: Group,
    divide_by: int = 1,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Replace gradients by their sum over a group, divided by a number; a collective call.

    Without a group this worker's gradients are the sum. In a 16-bit format they are divided first,
    so that the sum cannot overflow, and half as much is sent.
    """
    for bucket in _buckets(local_gradients(parameters)):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        if dtype is not torch.float32:
            flat = sum_in(group, (flat / divide_by).to(dtype)).to(flat.dtype)
        else:
            flat = sum_in(group, flat)
            if divide_by > 1:
                flat /= divide_by
        pieces = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [p.view_as(g) for p, g in zip(pieces, bucket, strict=True)])


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield runs of gradients of one format, each of about the bucket's size."""
    bucket: list[torch.Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size >= _BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel() * gradient.element_size()
    if bucket:
        yield bucket


def squared_norm(parameters: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return the sum of squares of the gradients that this worker holds, a scalar in fp32."""
    gradients = local_gradients(parameters)
    if not gradients:
        return torch.zeros((), device=device)
    norms = torch.stack([norm.to(device) for norm in torch._foreach_norm(gradients)])
    return norms.square().sum()


def scale_gradients(parameters: Iterable[torch.Tensor], factor: torch.Tensor | float) -> None:
    """Multiply the gradients that this worker holds by a factor."""
    gradients = local_gradients(parameters)
    if not gradients:
        return
    if isinstance(factor, torch.Tensor):
        factor = factor.to(gradients[0].device)
    torch._foreach_mul_(gradients, factor)
