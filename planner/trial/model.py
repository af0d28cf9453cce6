"""ModelConfig: the shape of a model."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from planner.config import Config, PositiveCount
from planner.trial.divisibility import divisors, must_divide

__all__ = ["ModelConfig"]

BYTE_VOCABULARY = 256


class ModelConfig(Config):
    """Shape of a transformer."""

    family: Literal["decoder", "vit"] = "decoder"
    """Registered family: `decoder` predicts the next token of text; `vit` classifies images by their
    patches, each a token, with attention in both directions and a mean over the patches."""
    num_layers: PositiveCount
    """Transformer blocks."""
    d_model: PositiveCount
    """Width of the residual stream."""
    num_heads: PositiveCount | None = None
    """Attention heads; by default the most that keep 64 channels a head (one if narrower)."""
    num_kv_heads: PositiveCount | None = None
    """Heads of keys and values (grouped-query attention); by default num_heads."""
    d_ff: PositiveCount | None = None
    """Width of the MLP; by default 4 d_model, or 8/3 d_model rounded up to 16 when gated."""
    vocab_size: PositiveCount = BYTE_VOCABULARY
    """Tokens in the vocabulary (decoder)."""
    sequence_length: PositiveCount = 128
    """Context in tokens; of a vit its patches, which need not be written."""
    image_pixels: PositiveCount = 32
    """Height and width of an image (vit)."""
    patch_pixels: PositiveCount = 4
    """Height and width of a patch (vit)."""
    image_channels: PositiveCount = 3
    """Colours of an image: 1 for grey (vit)."""
    num_classes: PositiveCount = 10
    """Classes of images (vit)."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation before attention, MLP and head."""
    position: Literal["rope", "learned"] = "rope"
    """Position information; a vit counts its patches row by row."""
    mlp: Literal["gelu", "gated"] = "gelu"
    """Two-matrix GELU MLP, or three-matrix gated (SwiGLU) MLP."""
    tied_head: bool = True
    """Whether the head shares the embedding's matrix (decoder)."""
    bias: bool = False
    """Whether linear layers and LayerNorm have biases."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of activations dropped in training."""
    weight_norm: bool = False
    """Whether every row of the layers' matrices is a direction times a learnt length."""
    num_experts: PositiveCount | None = None
    """Experts per mixture-of-experts MLP; none makes the MLP dense."""
    experts_per_token: PositiveCount = 1
    """Experts that each token is routed to."""
    router_balance_weight: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the loss that spreads each sequence's tokens over the experts."""

    @property
    def heads(self) -> int:
        """Attention heads, the default resolved."""
        if self.num_heads is not None:
            return self.num_heads
        return max(d for d in divisors(self.d_model) if d == 1 or self.d_model // d >= 64)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, the default resolved."""
        return self.num_kv_heads or self.heads

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.d_model // self.heads

    @property
    def ff_width(self) -> int:
        """Width of the MLP, the default resolved."""
        if self.d_ff is not None:
            return self.d_ff
        return 4 * self.d_model if self.mlp == "gelu" else -(-8 * self.d_model // 3 // 16) * 16

    @property
    def is_causal(self) -> bool:
        """Whether a token attends to those before it alone."""
        return self.family == "decoder"

    @model_validator(mode="before")
    @classmethod
    def _patches_are_tokens(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("family") != "vit" or "sequence_length" in data:
            return data
        image = data.get("image_pixels", cls.model_fields["image_pixels"].default)
        patch = data.get("patch_pixels", cls.model_fields["patch_pixels"].default)
        if not (isinstance(image, int) and isinstance(patch, int)) or not 0 < patch <= image:
            return data
        return data | {"sequence_length": (image // patch) ** 2}

    def _check_vit(self) -> None:
        must_divide("patch_pixels", self.patch_pixels, "image_pixels", self.image_pixels)
        patches = (self.image_pixels // self.patch_pixels) ** 2
        if self.sequence_length != patches:
            raise ValueError(
                f"a vit's sequence is its patches: sequence_length={self.sequence_length}, "
                f"image_pixels={self.image_pixels} and patch_pixels={self.patch_pixels} give "
                f"{patches}. Leave sequence_length out"
            )
        if self.num_experts is not None:
            raise ValueError(f"a vit has no experts (got num_experts={self.num_experts})")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.family == "vit":
            self._check_vit()
        must_divide("num_heads", self.heads, "d_model", self.d_model)
        must_divide("num_kv_heads", self.kv_heads, "num_heads", self.heads)
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(
                f"rope needs an even number of channels per head: d_model={self.d_model} over "
                f"{self.heads} heads gives {self.head_dim}. Change num_heads or use position: learned"
            )
        if self.num_experts is not None and self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token must not exceed num_experts: {self.experts_per_token} of "
                f"{self.num_experts}"
            )
        return self
