"""Activation checkpointing: what the backward pass computes again instead of keeping.

`full` keeps a block's input alone (Chen et al., 2016); `selective` keeps the results of matrix
products and of attention, which cost the most to compute, and computes the rest again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from planner.engine.models.layers import Recompute
from planner.engine.torch_internals import attention_operators, scaled_product_operators

__all__ = ["make_recompute"]

_KEPT: Final = frozenset({
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    *scaled_product_operators(),
    *attention_operators(),
})  # fmt: skip


def make_recompute(mode: str) -> Recompute | None:
    """Return what runs a block under a mode, `none`, `selective` or `full`."""
    if mode == "none":
        return None
    if mode == "full":
        return _run_full
    return partial(_run_selective, partial(create_selective_checkpoint_contexts, _policy))


def _run_full(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return checkpoint(function, x, use_reentrant=False)


def _run_selective(
    contexts: Callable[[], Any], function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    return checkpoint(function, x, use_reentrant=False, context_fn=contexts)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
