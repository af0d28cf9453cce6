"""Data parallelism: workers hold the same parameters and average their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import torch
import torch.distributed as dist
from torch import nn

__all__ = ["average_gradients"]

_BUCKET_BYTES: Final = 25 * 2**20
"""Gradients are sent in pieces of about this size, as DistributedDataParallel does."""


def average_gradients(
    parameters: Iterable[nn.Parameter], group: dist.ProcessGroup | None, num_workers: int
) -> None:
    """Replace every gradient by its mean over a group's workers."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat, group=group)
        flat /= num_workers
        pieces = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [p.view_as(g) for p, g in zip(pieces, bucket, strict=True)])


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield runs of gradients of one format and device, each of about the bucket's size."""
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
