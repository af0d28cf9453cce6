"""Bytes that one device needs at the peak of a training step, by kind.

States are parameters, gradients, and the optimizer's moments with master weights; activations are
what the backward pass needs; logits are the spike of the loss; gathered are whole parameters of
the layers in flight where they are sharded; overhead is the runtime's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from planner.costs.workload import Array, Number, Workload

__all__ = [
    "MemoryConstants",
    "MemoryUse",
    "activation_bytes_per_layer",
    "memory_use",
    "params_per_device",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConstants:
    """What memory depends on beside the configuration; calibration scales the middle three."""

    overhead_bytes: float = 1.5e9
    """Runtime context, communication buffers and workspace (1-3 GB in practice)."""
    activation_factor: float = 1.0
    """Measured over computed activations."""
    loss_factor: float = 1.0
    """Measured over computed logits and loss."""
    state_factor: float = 1.0
    """Measured over computed states: padding, buckets."""


PRODUCTS_KEPT: Final = 0.55
"""Share of a block's activations that are results of products and attention: 0.5 to 0.6 where traced
in the engine's blocks."""
OPERATORS_KEPT: Final = 0.45
"""Share of a block's activations that operator-level recomputation keeps: every second product and the
attention's output (torchtitan's default policy, recalled)."""
GPU_MEMORY: Final = MemoryConstants()
CPU_MEMORY: Final = MemoryConstants(overhead_bytes=4.2e8, activation_factor=1.15, state_factor=1.4)
"""Resident memory of an engine's process: the interpreter with torch (220-300 MB), the corpus, and
what the C library's allocator keeps. Fitted on four runs of the engine of 0.6 to 2.3 GB."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MemoryUse:
    """Bytes per device at the peak, on the fullest stage."""

    params: Array
    gradients: Array
    optimizer: Array
    activations: Array
    logits: Array
    gathered: Array
    overhead: Array

    @property
    def states(self) -> Array:
        """Parameters, gradients and optimizer states."""
        return self.params + self.gradients + self.optimizer

    @property
    def total(self) -> Array:
        """The sum of all kinds."""
        return self.states + self.activations + self.logits + self.gathered + self.overhead


def block_params_per_device(w: Workload) -> tuple[Number, Number]:
    """Return the parameters of one block on one device: those outside of the experts, and the experts'."""
    dense = w.attention_params + w.mlp_matrices * w.d_model * w.dense_d_ff
    shared = w.num_shared_experts * w.mlp_matrices * w.d_model * w.expert_d_ff
    routed = w.num_experts * w.mlp_matrices * w.d_model * w.expert_d_ff
    return (dense + shared) / w.tensor, routed / (w.tensor * w.expert)


def params_per_device(w: Workload) -> tuple[Array, Array]:
    """Return the parameters of the fullest stage on one device: outside of the experts, and the experts'.

    ceil(L / p) blocks; the first and the last stage hold an embedding matrix each when p > 1, one
    device holds both (one if they are tied).
    """
    dense, routed = block_params_per_device(w)
    layers = np.ceil(w.num_layers / w.pipeline)
    table = w.vocab_size * w.d_model / w.tensor
    tables = np.where(np.asarray(w.pipeline) > 1, 1.0, w.head_copies)
    other = w.other_params / np.maximum(w.pipeline, 1.0)
    return np.asarray(layers * dense + tables * table + other), np.asarray(layers * routed)


def activation_bytes_per_layer(w: Workload) -> tuple[Number, Number]:
    """Return the bytes that one block keeps for one micro-batch, and its input alone.

    Per token with B bytes an activation: 4 B h (inputs of norms and projections), + 2 h of dropout
    masks, / t under sequence parallelism; (2 q + 2 kv) B for query, key, value and the attention's
    output and 2 B f (4 B f when gated) for the MLP, / t; + (2 B + 1) a s of scores / t where
    attention is not fused. In GPT with dropout and B = 2 that is s b h (10 + 24 / t + 5 a s / (h t)).

    Source: Korthikanti et al. 2022 (arXiv:2205.05198), equations 1 to 4; flash attention and
    selective recomputation drop the scores.
    """
    size = w.activation_bytes
    tokens = w.micro_batch * w.sequence_tokens / w.context
    sp = np.where(np.asarray(w.sequence_parallel) > 0, w.tensor, 1.0)
    stream = (4.0 * size + 2.0 * w.dropout) * w.d_model / sp
    per_width = np.where(np.asarray(w.mlp_matrices) > 2, 4.0 * size, 2.0 * size)
    width = w.dense_d_ff + (w.experts_per_token + w.num_shared_experts) * w.expert_d_ff
    routing = (
        2.0 * size * w.d_model * np.where(np.asarray(w.num_experts) > 0, w.experts_per_token, 0.0)
    )
    inner = (
        2.0 * size * (w.query_width + w.kv_width) + per_width * width
    ) / w.tensor + routing / sp
    keeps_scores = (1.0 - w.flash) * np.where(np.asarray(w.recompute) > 0, 0.0, 1.0)
    scores = (
        keeps_scores
        * (2.0 * size + w.dropout)
        * w.num_heads
        * w.context_tokens
        / (w.tensor * w.context)
    )
    return tokens * (stream + inner + scores), tokens * size * w.d_model / sp


def _kept_fraction(w: Workload) -> Array:
    """Return the share of a block's activations that recomputing some operators keeps."""
    mode = np.asarray(w.recompute)
    kept = 1.0 - (1.0 - PRODUCTS_KEPT) * (mode == 1.25) - (1.0 - OPERATORS_KEPT) * (mode == 1.5)
    return np.asarray(kept)


def _activations(w: Workload) -> tuple[Array, Array]:
    """Bytes of activations on the first stage and on the last one.

    1F1B holds min(m, p) micro-batches of L / p blocks on the first stage and one on the last, the
    interleaved schedule 1 + (p - 1) / (p v) times as many blocks on the first; full recomputation
    keeps inputs and one live block.
    """
    whole, inputs = activation_bytes_per_layer(w)
    whole = whole * _kept_fraction(w)
    full = np.asarray(w.recompute) == 2.0
    layers = np.ceil(w.num_layers / w.pipeline)
    interleaved = np.where(
        np.asarray(w.virtual) > 1, 1.0 + (w.pipeline - 1.0) / (w.pipeline * w.virtual), 1.0
    )
    each = layers * np.where(full, inputs, whole)
    live = np.where(full, whole, 0.0)
    every = (np.asarray(w.holds_all) > 0) & (np.asarray(w.pipeline) > 1)
    held = np.where(every, w.num_micro_batches, w.pipeline * interleaved)
    first = each * np.minimum(w.num_micro_batches, held) + live
    return first, each * np.minimum(w.num_micro_batches, interleaved) + live


def _logits(w: Workload, constants: MemoryConstants) -> Array:
    """Bytes of logits, softmax and their gradient for one micro-batch, T V / t (B + 4 to 8)."""
    tokens = w.micro_batch * w.sequence_tokens / w.context
    whole = tokens * w.vocab_size / w.tensor * (w.activation_bytes + w.loss_bytes)
    whole = whole * constants.loss_factor
    return np.asarray(whole * np.where(np.asarray(w.chunked_loss) > 0, 1.0 / 16.0, 1.0))


def _gathered(w: Workload) -> Array:
    """Whole parameters in flight under ZeRO-3, in the wire's precision.

    Two layers, or a layer and the table; a pipeline keeps its stage's parameters and gradients whole
    from the first micro-batch to the last.
    """
    dense, routed = block_params_per_device(w)
    table = w.vocab_size * w.d_model / w.tensor
    layer = np.maximum(2.0 * (dense + routed), dense + routed + table)
    stage = 2.0 * np.ceil(w.num_layers / w.pipeline) * (dense + routed) + table
    held = np.where(np.asarray(w.pipeline) > 1, stage, layer)
    return np.where(np.asarray(w.zero_stage) >= 3, held * w.gather_bytes, 0.0)


def memory_use(w: Workload, constants: MemoryConstants = GPU_MEMORY) -> MemoryUse:
    """Return the bytes per device by kind.

    ZeRO-1 shards optimizer states over D workers, ZeRO-2 gradients too, ZeRO-3 (FSDP) parameters
    too; experts are sharded over D / e of them.

    Source: Rajbhandari et al. 2020 (arXiv:1910.02054), section 5.
    """
    dense, routed = params_per_device(w)
    dense, routed = dense * constants.state_factor, routed * constants.state_factor
    shard = np.maximum(w.shard, 1.0)
    expert_shard = np.maximum(shard / w.expert, 1.0)

    def sharded(stage: int) -> Array:
        cut = np.asarray(w.zero_stage) >= stage
        parts = dense / np.where(cut, shard, 1.0) + routed / np.where(cut, expert_shard, 1.0)
        return np.asarray(parts, dtype=np.float64)

    total = sharded(1) * 0.0
    here = 1.0 - np.asarray(w.offloaded)
    first, last = _activations(w)
    logits, several = _logits(w, constants), np.asarray(w.pipeline) > 1
    first, last = first * constants.activation_factor, last * constants.activation_factor
    at_end = ~several | (last + logits >= first)
    return MemoryUse(
        params=sharded(3) * w.param_bytes * here,
        gradients=sharded(2) * w.gradient_bytes * (1.0 - w.frozen) * here,
        optimizer=sharded(1) * w.optimizer_bytes * (1.0 - w.frozen) * here,
        activations=total + np.where(at_end & several, last, first),
        logits=total + np.where(at_end, logits, 0.0),
        gathered=total + _gathered(w),
        overhead=total + constants.overhead_bytes + w.buffer_bytes,
    )
