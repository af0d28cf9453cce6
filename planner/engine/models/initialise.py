"""Initial values: a pure function of the seed and of a parameter's name.

No layout, worker count or order of construction changes them.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from planner.trial import ModelConfig

__all__ = ["initial_value", "initialise"]

_STD = 0.02
"""Of every matrix (Radford et al., 2019); output projections are divided by sqrt(2 num_layers)."""


def initial_value(name: str, shape: torch.Size, *, model: ModelConfig, seed: int) -> torch.Tensor:
    """Return the initial value of a parameter, fp32 on the CPU."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    digest = hashlib.sha256(f"init:{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    std = _STD
    if name.endswith((".wo.weight", ".w2.weight")):
        std /= math.sqrt(2 * model.num_layers)
    return torch.randn(shape, generator=generator) * std


@torch.no_grad()
def initialise(module: nn.Module, *, model: ModelConfig, seed: int) -> None:
    """Write the initial value of every parameter in place."""
    for name, parameter in module.named_parameters():
        parameter.copy_(initial_value(name, parameter.shape, model=model, seed=seed))
