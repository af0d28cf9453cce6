"""The vision transformer: an encoder over the patches of an image.

B images, C colours, H height, W width, T patches, P side of a patch, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from planner.engine.models.layers import Linear
from planner.engine.models.transformer import Transformer
from planner.trial import ModelConfig

__all__ = ["VisionTransformer"]


class VisionTransformer(Transformer):
    """Classifies images (Dosovitskiy et al., 2021).

    The head reads the mean over the patches instead of a class token (Beyer et al., 2022, "Better
    plain ViT baselines for ImageNet-1k").
    """

    def __init__(self, model: ModelConfig, compute: torch.dtype = torch.float32) -> None:
        super().__init__(model, compute)
        self.patch_pixels = model.patch_pixels
        width = model.image_channels * model.patch_pixels**2
        self.patches = Linear(width, model.d_model, bias=True)
        self.head = Linear(model.d_model, model.num_classes, bias=True)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes)."""
        x_BTD = self.patches(cut_patches(images_BCHW, self.patch_pixels))
        if self.positions is not None:
            x_BTD = self.positions(x_BTD)
        x_BTD = x_BTD.to(self.compute)
        if self.dropout:
            x_BTD = F.dropout(x_BTD, self.dropout, self.training)
        for layer in self.layers.values():
            x_BTD = layer(x_BTD)
        if self.norm is None or self.head is None:
            raise LookupError("a vision transformer is not cut into stages")
        return self.head(self.norm(x_BTD).mean(1) * self.logit_scale)


def cut_patches(images_BCHW: torch.Tensor, side: int) -> torch.Tensor:
    """Return the patches of images row by row, (B, T, C P P)."""
    batch, colours, height, width = images_BCHW.shape
    grid = images_BCHW.view(batch, colours, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, colours * side * side)
