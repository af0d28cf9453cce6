"""How many parameters a model has, by group."""

from __future__ import annotations

from dataclasses import dataclass

from planner.costs.shapes import Convolution, ModelShape, shape_of
from planner.trial import ModelConfig

__all__ = ["ParamCount", "attention_matrix_params", "count_params", "count_shape_params"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamCount:
    """Parameters by group; the groups sum to the total."""

    token_embedding: int = 0
    position_embedding: int = 0
    attention: int = 0
    mlp: int = 0
    experts: int = 0
    """Routed and shared experts of all mixture-of-experts blocks."""
    router: int = 0
    norms: int = 0
    convolutions: int = 0
    head: int = 0
    """An untied output matrix, a task head or a pooler."""
    other: int = 0
    idle_experts: int = 0
    """Parameters of the routed experts that one token does not pass; part of `experts`."""

    @property
    def total(self) -> int:
        """All parameters; a tied head counts once."""
        return (
            self.token_embedding + self.position_embedding + self.attention + self.mlp
            + self.experts + self.router + self.norms + self.convolutions + self.head + self.other
        )  # fmt: skip

    @property
    def non_embedding(self) -> int:
        """Without token and position embeddings; an untied head counts as embedding."""
        return self.total - self.token_embedding - self.position_embedding - self.head

    @property
    def active(self) -> int:
        """Parameters that one token passes."""
        return self.total - self.idle_experts


def attention_matrix_params(shape: ModelShape) -> int:
    """Return the matrix parameters of one attention.

    2 h q + 2 h kv, with q = heads * head_dim and kv = kv_heads * head_dim; h^2 (2 + 2 k / a) where
    the heads fill the width (Shazeer 2019, arXiv:1911.02150; Ainslie et al. 2023,
    arXiv:2305.13245).
    """
    if shape.attention_params:
        return shape.attention_params
    return 2 * shape.d_model * (shape.query_width + shape.kv_width)


def _attention_biases(shape: ModelShape) -> int:
    qkv = shape.query_width + 2 * shape.kv_width
    if shape.linear_bias:
        return qkv + shape.d_model
    return qkv if shape.qkv_bias else 0


def _mlp_params(shape: ModelShape, width: int) -> int:
    biases = (shape.mlp_matrices - 1) * width + shape.d_model if shape.linear_bias else 0
    return shape.mlp_matrices * shape.d_model * width + biases


def _convolution_params(layer: Convolution) -> int:
    weights = layer.kernel**2 * layer.in_channels * layer.out_channels // layer.groups
    return weights + layer.out_channels * (2 * layer.norm + layer.bias)


def count_shape_params(shape: ModelShape) -> ParamCount:
    """Return the parameters of a shape by group.

    Per block: attention 2 h (q + kv), MLP g h f, norms 2 h or 4 h, biases where there are any;
    mixture of experts E g h f + shared experts + a router of h E. Embedding V h, head V h when it
    is not tied, positions s_max h.

    Source: Narayanan et al. 2021 (arXiv:2104.04473), equation 2 for the GPT case,
    12 L h^2 (1 + 13 / (12 h) + (V + s) / (12 L h)).
    """
    if shape.family == "convnet":
        return ParamCount(
            convolutions=sum(_convolution_params(layer) for layer in shape.convolutions),
            other=shape.other_params,
        )
    attentions = shape.num_layers + 2 * shape.decoder_layers
    norms = shape.norms_per_layer * shape.num_layers + shape.final_norms
    if shape.decoder_layers:
        norms += (shape.norms_per_layer + 1) * shape.decoder_layers + shape.final_norms
    moe, expert = shape.num_expert_layers, _mlp_params(shape, shape.d_ff)
    dense_width = shape.dense_d_ff if shape.num_experts else shape.d_ff
    routed = moe * shape.num_experts * expert
    head = 0 if shape.tied_head or not shape.has_head else shape.vocab_size * shape.d_model
    return ParamCount(
        token_embedding=0 if shape.family == "vit" else shape.vocab_size * shape.d_model,
        position_embedding=shape.learned_positions * shape.d_model,
        attention=attentions * (attention_matrix_params(shape) + _attention_biases(shape)),
        mlp=(shape.num_blocks - moe) * _mlp_params(shape, dense_width),
        experts=routed + moe * shape.num_shared_experts * expert,
        router=moe * shape.d_model * shape.num_experts,
        norms=norms * shape.norm_width_factor * shape.d_model,
        head=head + shape.other_head_params,
        other=shape.other_params,
        idle_experts=moe * (shape.num_experts - shape.experts_per_token) * expert,
    )


def count_params(model: ModelConfig) -> ParamCount:
    """Return the parameters of the engine's model by group.

    >>> from planner.trial import ModelConfig
    >>> count_params(ModelConfig(num_layers=4, d_model=128, vocab_size=256)).total
    820352
    """
    return count_shape_params(shape_of(model))
