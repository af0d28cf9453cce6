"""Models: a family is registered under the name that `model.family` holds.

A family is the shape that ModelConfig describes, one class to build, and (in `parallel/`) the plan
of how its parameters are laid out. Names of parameters are the same in every layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from planner.engine.models.decoder import Decoder
from planner.trial import ModelConfig

__all__ = ["FAMILIES", "build_model"]

FAMILIES: Final[dict[str, Callable[[ModelConfig, torch.dtype], Decoder]]] = {"decoder": Decoder}
"""Family -> what builds it from a shape and a compute format."""


def build_model(model: ModelConfig, compute: torch.dtype) -> Decoder:
    """Return a model of the configured family, its parameters not yet initialised."""
    return FAMILIES[model.family](model, compute)
