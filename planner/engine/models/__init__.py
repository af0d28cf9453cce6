"""Models: a family is registered under the name that `model.family` holds.

A family is a class to build (here), its shape, from which parameter count, FLOPs and memory follow
(`planner.costs.shapes`), the layouts that split it (`planner.trial.support`, `parallel/`) and the
task that it is for (`TrialConfig.task`). Names of parameters are the same in every layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from planner.engine.models.decoder import Decoder
from planner.engine.models.transformer import Transformer
from planner.engine.models.vit import VisionTransformer
from planner.trial import ModelConfig

__all__ = ["FAMILIES", "build_model"]

FAMILIES: Final[dict[str, Callable[[ModelConfig, torch.dtype], Transformer]]] = {
    "decoder": Decoder,
    "vit": VisionTransformer,
}
"""Family -> what builds it from a shape and a compute format."""


def build_model(model: ModelConfig, compute: torch.dtype) -> Transformer:
    """Return a model of the configured family, its parameters not yet initialised."""
    return FAMILIES[model.family](model, compute)
