"""The shape of a model as the formulas see it, and the named public shapes.

One `ModelShape` covers decoders, encoders, encoder-decoders, mixtures of experts, vision
transformers and convolutional networks. The engine's `ModelConfig` converts with `shape_of`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from planner.config import Config, Count, Name, PositiveCount, load_config
from planner.errors import ConfigError, did_you_mean
from planner.trial import ModelConfig

__all__ = [
    "Convolution", "ModelShape", "NamedShape", "decoder_shape", "named_shape", "named_shapes",
    "shape_of",
]  # fmt: skip

Family = Literal["decoder", "encoder", "encoder-decoder", "vit", "convnet"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Convolution:
    """One convolution, or a fully connected layer as a 1 x 1 convolution of one pixel."""

    kernel: int
    in_channels: int
    out_channels: int
    pixels: int
    """Output height times width."""
    groups: int = 1
    norm: bool = True
    """Whether batch normalisation (two parameters a channel) follows."""
    bias: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Widths and counts; a token is a text token, or a patch of an image."""

    family: Family = "decoder"
    num_layers: int
    """Transformer blocks; of the encoder in an encoder-decoder."""
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    """Width of a dense MLP; of one expert where `num_experts` is given."""
    mlp_matrices: int = 2
    """2 for GELU or ReLU, 3 for a gated MLP."""
    vocab_size: int
    sequence_length: int
    tied_head: bool = True
    has_head: bool = True
    """Whether logits over the vocabulary are computed."""
    linear_bias: bool = False
    """Biases of all linear layers of the blocks."""
    qkv_bias: bool = False
    """Biases of the query, key and value projections alone."""
    norm_width_factor: int = 1
    """Parameters of a norm over its width: 1 for RMSNorm, 2 for LayerNorm."""
    norms_per_layer: int = 2
    final_norms: int = 1
    learned_positions: int = 0
    """Rows of the table of learned positions."""
    num_experts: int = 0
    experts_per_token: int = 0
    num_shared_experts: int = 0
    """Experts that every token passes, of width d_ff."""
    num_dense_layers: int = 0
    """Blocks with a dense MLP of width dense_d_ff in a mixture of experts."""
    dense_d_ff: int = 0
    decoder_layers: int = 0
    """Blocks of the decoder of an encoder-decoder, with cross-attention."""
    decoder_length: int = 0
    attention_params: int = 0
    """Matrix parameters of one attention where they do not follow from the heads (MLA)."""
    other_params: int = 0
    """Parameters outside of all of the above, per the shape's note."""
    other_head_params: int = 0
    """Parameters of a task head or pooler."""
    is_causal: bool = True
    dropout: bool = False
    convolutions: tuple[Convolution, ...] = ()

    @property
    def query_width(self) -> int:
        """Channels of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Channels of all key heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_blocks(self) -> int:
        """Blocks of encoder and decoder together."""
        return self.num_layers + self.decoder_layers

    @property
    def num_expert_layers(self) -> int:
        """Blocks whose MLP is a mixture of experts."""
        return self.num_layers - self.num_dense_layers if self.num_experts else 0


@cache
def shape_of(model: ModelConfig) -> ModelShape:
    """Return the shape of the engine's model."""
    layer_norm = model.norm == "layernorm"
    shape = ModelShape(
        num_layers=model.num_layers,
        d_model=model.d_model,
        num_heads=model.heads,
        num_kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        d_ff=model.ff_width,
        mlp_matrices=3 if model.mlp == "gated" else 2,
        vocab_size=model.vocab_size,
        sequence_length=model.sequence_length,
        tied_head=model.tied_head,
        linear_bias=model.bias,
        norm_width_factor=2 if layer_norm and model.bias else 1,
        learned_positions=model.sequence_length if model.position == "learned" else 0,
        num_experts=model.num_experts or 0,
        experts_per_token=model.experts_per_token if model.num_experts else 0,
        dropout=model.dropout > 0,
        other_params=model.num_layers * _row_scales(model) if model.weight_norm else 0,
    )
    if model.family == "decoder":
        return shape
    patch = model.image_channels * model.patch_pixels**2
    return replace(
        shape,
        family="vit",
        vocab_size=model.num_classes,
        tied_head=True,
        is_causal=False,
        other_params=(patch + 1) * model.d_model,
        other_head_params=(model.d_model + 1) * model.num_classes,
    )


def _row_scales(model: ModelConfig) -> int:
    """Return the rows of a block's matrices, each of which has a scale under weight norm."""
    first = 2 if model.mlp == "gated" else 1
    kv_width = model.kv_heads * model.head_dim
    return 3 * model.d_model + 2 * kv_width + first * model.ff_width


def decoder_shape(
    num_layers: int, width: int, *, vocab_size: int = 50_304, sequence_length: int = 2048
) -> ModelShape:
    """Return a plain decoder: heads of 128 channels where they divide the width, else of 64.

    Raises:
        ConfigError: A size is not positive, or 64 does not divide the width.
    """
    if num_layers < 1 or width < 64 or width % 64:
        raise ConfigError(
            f"layers must be at least 1 and width a multiple of 64: {num_layers} and {width}."
        )
    head = 128 if width % 128 == 0 and width >= 1024 else 64
    return ModelShape(
        num_layers=num_layers, d_model=width, num_heads=width // head, num_kv_heads=width // head,
        head_dim=head, d_ff=4 * width, vocab_size=vocab_size, sequence_length=sequence_length,
    )  # fmt: skip


class NamedShape(Config):
    """One public shape as `shapes.yaml` holds it."""

    family: Family = "decoder"
    num_layers: Count = 0
    d_model: Count = 0
    num_heads: PositiveCount = 1
    num_kv_heads: PositiveCount | None = None
    head_dim: PositiveCount | None = None
    d_ff: Count | None = None
    mlp_matrices: Annotated[int, Field(ge=2, le=3)] = 2
    vocab_size: PositiveCount
    sequence_length: PositiveCount
    tied_head: bool = True
    has_head: bool = True
    linear_bias: bool = False
    qkv_bias: bool = False
    norm_width_factor: Annotated[int, Field(ge=1, le=2)] = 1
    norms_per_layer: Count = 2
    final_norms: Count = 1
    learned_positions: Count = 0
    num_experts: Count = 0
    experts_per_token: Count = 0
    num_shared_experts: Count = 0
    num_dense_layers: Count = 0
    dense_d_ff: Count = 0
    decoder_layers: Count = 0
    decoder_length: Count = 0
    attention_params: Count = 0
    other_params: Count = 0
    other_head_params: Count = 0
    is_causal: bool = True
    dropout: bool = False
    convnet: Name | None = None
    """Builder of a convolutional network: `resnet-50`, `efficientnet-b0` and the like."""
    published_params: PositiveCount | None = None
    """Parameters that the source states, or that the released weights hold."""
    source: Name
    note: str = ""


class _Shapes(Config):
    shapes: dict[str, NamedShape]


@cache
def named_shapes() -> dict[str, NamedShape]:
    """Return the rows of `shapes.yaml` by name."""
    return load_config(Path(__file__).with_name("shapes.yaml"), _Shapes).shapes


def named_shape(name: str, *, sequence_length: int | None = None) -> ModelShape:
    """Return the shape of a public model.

    Raises:
        ConfigError: No shape has that name.

    >>> named_shape("gpt-7b").d_model
    4096
    """
    rows = named_shapes()
    if name not in rows:
        raise ConfigError(
            f"no model shape named {name!r}. {did_you_mean(name, rows)}",
            hint="`planner estimate --models` lists the names; --layers and --width describe another.",
        )
    shape = _from_row(rows[name])
    return shape if sequence_length is None else replace(shape, sequence_length=sequence_length)


def _from_row(row: NamedShape) -> ModelShape:
    if row.convnet is not None:
        from planner.costs.convnets import convnet_shape

        return convnet_shape(row.convnet, row.vocab_size)
    data = row.model_dump(exclude={"convnet", "published_params", "source", "note"})
    data["num_kv_heads"] = row.num_kv_heads or row.num_heads
    data["head_dim"] = row.head_dim or row.d_model // row.num_heads
    data["d_ff"] = 4 * row.d_model if row.d_ff is None else row.d_ff
    return ModelShape(**data)
