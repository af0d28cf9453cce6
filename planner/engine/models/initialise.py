"""Initial values: a pure function of the seed and of a parameter's name.

No layout, worker count or order of construction changes them.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import nn

from planner.trial import ModelConfig

__all__ = ["initial_value", "materialise"]

_STD = 0.02
"""Of every matrix (Radford et al., 2019); output projections are divided by sqrt(2 num_layers)."""


def initial_value(
    name: str, shape: torch.Size, *, model: ModelConfig, seed: int, width_ratio: float = 1.0
) -> torch.Tensor:
    """Return the initial value of a whole parameter, fp32 on the CPU.

    Under width scaling the variance of hidden matrices falls with d_model / base_width, which is
    `width_ratio` (Yang et al., 2022, "Tensor Programs V", table 8).
    """
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    digest = hashlib.sha256(f"init:{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    std = _STD
    if name.endswith((".wo.weight", ".w2.weight", ".experts.w2")):
        std /= math.sqrt(2 * model.num_layers)
    if name.startswith("layers."):
        std /= math.sqrt(width_ratio)
    return torch.randn(shape, generator=generator) * std


@torch.no_grad()
def materialise(
    module: nn.Module,
    prefix: str,
    *,
    device: torch.device,
    model: ModelConfig,
    seed: int,
    width_ratio: float = 1.0,
) -> None:
    """Give a module that was built without memory its memory and its initial values.

    Args:
        module: A model or a part of it; a split parameter receives this worker's part.
        prefix: What comes before the module's own names in the model, such as `layers.3.`.
        device: Where the parameters live.
        model: Shape of the whole model.
        seed: Of the initial values.
        width_ratio: d_model over the base width under width scaling, else 1.
    """
    for name, parameter in list(module.named_parameters()):
        if parameter.is_meta:
            owner, _, leaf = name.rpartition(".")
            place = module.get_submodule(owner)
            if leaf == "scale":  # of a weight norm: the length of the rows that were just drawn
                whole = torch.linalg.vector_norm(place.get_parameter("weight"), dim=1)
            else:
                whole = initial_value(
                    prefix + name, parameter.shape, model=model, seed=seed, width_ratio=width_ratio
                )
            place.register_parameter(leaf, nn.Parameter(_like(parameter, whole, device)))


def _like(parameter: Any, whole: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a whole value laid out as a parameter is."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return whole.to(device)
    from torch.distributed.tensor import DTensor

    (placement,) = parameter.placements
    view = whole.chunk(mesh.size(), placement.dim)[mesh.get_local_rank()]
    # A view would keep the storage of the whole alive.
    part = view.clone(memory_format=torch.contiguous_format)
    return DTensor.from_local(
        part.to(device), mesh, parameter.placements,
        run_check=False, shape=whole.shape, stride=whole.stride(),
    )  # fmt: skip
