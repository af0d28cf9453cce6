"""How much arithmetic a model needs, in the conventions that are in print.

One multiply-add is 2 FLOPs and the backward pass is twice the forward one. Our own count is
`train_flops_per_token`; the others are here so that published figures can be reproduced.
"""

from __future__ import annotations

from typing import Final

from planner.costs.params import attention_matrix_params, count_shape_params
from planner.costs.shapes import ModelShape, shape_of
from planner.trial import ModelConfig, TrialConfig

__all__ = [
    "MFU_CONVENTION",
    "attention_flops_per_token",
    "chinchilla_flops_per_token",
    "forward_flops_per_token",
    "matmul_params",
    "megatron_flops_per_step",
    "num_train_tokens",
    "shape_flops_per_token",
    "train_flops_per_token",
]

MFU_CONVENTION: Final = "6N + attention (full matrix, head included, no recompute), device peak at the compute precision"
"""The convention of every MFU that planner prints."""


def matmul_params(shape: ModelShape) -> int:
    """Return the parameters that a token meets in matrix products, with one V h for the logits.

    Norms, biases and embedding look-ups are left out, idle experts too.
    """
    if shape.family == "convnet":
        return sum(
            c.pixels * c.kernel**2 * c.in_channels * c.out_channels // c.groups
            for c in shape.convolutions
        )
    attentions = shape.num_layers + 2 * shape.decoder_layers
    moe = shape.num_expert_layers
    width = shape.mlp_matrices * shape.d_model
    dense_width = shape.dense_d_ff if shape.num_experts else shape.d_ff
    mlp = (shape.num_blocks - moe) * width * dense_width
    experts = moe * (shape.experts_per_token + shape.num_shared_experts) * width * shape.d_ff
    router = moe * shape.d_model * shape.num_experts
    head = shape.vocab_size * shape.d_model if shape.has_head and shape.family != "vit" else 0
    return attentions * attention_matrix_params(shape) + mlp + experts + router + head


def attention_flops_per_token(shape: ModelShape) -> float:
    """Forward FLOPs of scores and weighted values for one token, causality not credited.

    4 L q s, with q = heads * head_dim (PaLM, arXiv:2204.02311, appendix B: 12 L H Q T in training).
    Cross-attention counts like self-attention over the encoder's tokens.
    """
    if shape.family == "convnet":
        return 0.0
    own = shape.num_layers * shape.sequence_length
    if shape.decoder_layers:
        own += shape.decoder_layers * (shape.decoder_length + shape.sequence_length)
    return 4.0 * own * shape.query_width


def shape_flops_per_token(shape: ModelShape) -> float:
    """Training FLOPs of one token (of one image for a convolutional network).

    6 N_matmul + 12 L q s; an encoder-decoder is charged per token of the encoder with as many
    tokens in the decoder.
    """
    return 3.0 * (2.0 * matmul_params(shape) + attention_flops_per_token(shape))


def forward_flops_per_token(model: ModelConfig) -> float:
    """Forward FLOPs for one token: 2 N_matmul + 4 L d_model s."""
    return shape_flops_per_token(shape_of(model)) / 3.0


def train_flops_per_token(model: ModelConfig) -> float:
    """Training FLOPs for one token, forward and backward, without recomputation.

    6 N_matmul + 12 L d_model s

    N_matmul holds the attention, MLP (active experts) and router matrices and one V d_model for
    the logits; not counted are embedding look-ups, softmax, norms. Causality is not credited, so
    attention is about twice what a causal kernel does. Hoffmann et al. 2022 (arXiv:2203.15556,
    appendix F) also count embeddings and softmax; Kaplan et al. 2020 use 6 N without embeddings.

    Source: Chowdhery et al. 2022 (arXiv:2204.02311), appendix B.

    >>> from planner.trial import ModelConfig
    >>> train_flops_per_token(ModelConfig(num_layers=4, d_model=128, sequence_length=64))
    5308416.0
    """
    return shape_flops_per_token(shape_of(model))


def num_train_tokens(config: TrialConfig) -> int:
    """Return the tokens that a trial trains on: whole steps, at least one.

    `train.tokens`, or `tokens_per_param` times the non-embedding parameters, or `flops` over the
    FLOPs per token; rounded to the nearest whole number of steps.
    """
    train = config.train
    if train.tokens is not None:
        tokens = float(train.tokens)
    elif train.tokens_per_param is not None:
        tokens = train.tokens_per_param * count_shape_params(shape_of(config.model)).non_embedding
    else:
        tokens = (train.flops or 0.0) / train_flops_per_token(config.model)
    return max(1, round(tokens / config.tokens_per_step)) * config.tokens_per_step


def chinchilla_flops_per_token(shape: ModelShape, *, with_vocabulary: bool = True) -> float:
    """Training FLOPs of one token as Hoffmann et al. count them.

    3 (2 V h + L (6 h q + 2 s q + 3 a s + 2 s q + 2 q h + 4 h f) + 2 h V), embeddings and softmax
    included. The ratios to 6 N D that their table A4 prints follow without the two terms in V,
    while N has them.

    Source: Hoffmann et al. 2022 (arXiv:2203.15556), appendix F.
    """
    h, q, s = shape.d_model, shape.query_width, shape.sequence_length
    attention = 6.0 * h * q + 4.0 * s * q + 3.0 * shape.num_heads * s + 2.0 * q * h
    dense = 2.0 * shape.mlp_matrices * h * shape.d_ff
    vocabulary = 4.0 * shape.vocab_size * h if with_vocabulary else 0.0
    return 3.0 * (vocabulary + shape.num_layers * (attention + dense))


def megatron_flops_per_step(shape: ModelShape, sequences: int, *, recomputes: bool) -> float:
    """FLOPs of one step as Narayanan et al. count them, hardware FLOPs if everything is recomputed.

    96 B s L h^2 (1 + s / (6 h) + V / (16 L h)) with full recomputation,
    72 B s L h^2 (1 + s / (6 h) + V / (12 L h)) without.

    Source: Narayanan et al. 2021 (arXiv:2104.04473), equation 3; Korthikanti et al. 2022
    (arXiv:2205.05198), equation 7.
    """
    h, s, layers = shape.d_model, shape.sequence_length, shape.num_layers
    factor, logits = (96.0, 16.0) if recomputes else (72.0, 12.0)
    inner = 1.0 + s / (6.0 * h) + shape.vocab_size / (logits * layers * h)
    return factor * sequences * s * layers * h**2 * inner
