"""Optimizers, with one rule for which parameters decay."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from planner.trial import OptimizerConfig

__all__ = ["build_optimizer", "decays"]

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Return whether weight decay applies: to matrices, but not to positions, norms and biases."""
    return parameter.ndim >= 2 and not name.startswith("positions.")


def build_optimizer(config: OptimizerConfig, parameters: NamedParameters) -> torch.optim.Optimizer:
    """Return the optimizer over named parameters, in groups with and without weight decay."""
    named = list(parameters)
    groups = []
    for decay in (True, False):
        members = [parameter for name, parameter in named if decays(name, parameter) is decay]
        if members:
            rate = config.weight_decay if decay else 0.0
            groups.append({"params": members, "weight_decay": rate})
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
