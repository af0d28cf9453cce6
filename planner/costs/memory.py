"""Bytes that one device needs at the peak of a training step, by kind.

States are parameters, gradients, and the optimizer's moments with master weights; activations are
what the backward pass needs; logits are the spike of the loss; gathered are whole parameters of
the layers in flight where they are sharded; overhead is the runtime's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from planner.costs.cluster import Cluster
from planner.costs.workload import Array, Number, Workload

__all__ = [
    "MemoryConstants",
    "MemoryUse",
    "activation_bytes_per_layer",
    "default_memory",
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
    last_stage_only: bool = False
    """Whether memory was read on the last pipeline stage, instead of on the fullest."""


OPERATORS_KEPT: Final = 0.45
"""Share of a block's activations that operator-level recomputation keeps: every second product and the
attention's output (torchtitan's default policy, recalled)."""
OPERATORS_KEPT_COMPILED: Final = 0.27
"""The same where the block is compiled, which recomputes more by itself: three of torchtitan's rows."""
GPU_MEMORY: Final = MemoryConstants()
CPU_MEMORY: Final = MemoryConstants(
    overhead_bytes=3.6e8, activation_factor=1.2, loss_factor=1.2, state_factor=1.2
)
"""Resident memory of an engine's process: the interpreter with torch and the corpus, and a fifth more than
the tensors for what the C library's heap keeps between them. Fitted on eight runs of the engine of 0.3 to
1.4 GB; the fifth is 10 to 80 % from one configuration to another, which only a trace can tell."""


def default_memory(cluster: Cluster) -> MemoryConstants:
    """Return the constants of a cluster on which nothing was measured."""
    return CPU_MEMORY if cluster.device.is_cpu else GPU_MEMORY


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
    """Return the parameters of one block on one device: those outside of the experts, and the experts'.

    Experts are split over e groups and, within a group, over t devices, or over fewer where a replica of
    the stage has fewer than e t devices.
    """
    dense = w.attention_params + w.mlp_matrices * w.d_model * w.dense_d_ff
    shared = w.num_shared_experts * w.mlp_matrices * w.d_model * w.expert_d_ff
    routed = w.num_experts * w.mlp_matrices * w.d_model * w.expert_d_ff
    return (dense + shared) / w.tensor, routed / _expert_ways(w)


def _expert_ways(w: Workload) -> Array:
    """Devices over which the parameters of a block's experts are split."""
    return np.minimum(w.tensor * w.expert, w.data * w.tensor * w.context)


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

    Per token with B bytes an activation: (4 B + E) h (inputs of norms and projections; E for what the
    framework keeps beyond), + 2 h of dropout masks, / t under sequence parallelism; (2 q + 2 kv) B for
    query, key, value and the attention's output and 2 B f (4 B f when gated) for the MLP, / t;
    + (2 B + 1) a s of scores / t where attention is not fused. In GPT with dropout, B = 2 and E = 0
    that is s b h (10 + 24 / t + 5 a s / (h t)).

    Source: Korthikanti et al. 2022 (arXiv:2205.05198), equations 1 to 4; flash attention and
    selective recomputation drop the scores.
    """
    size = w.activation_bytes
    tokens, sp = _tokens(w), _split_along_sequence(w)
    stream = (4.0 * size + w.extra_stream_bytes + 2.0 * w.dropout) * w.d_model / sp
    inner = 2.0 * size * (w.query_width + w.kv_width) + size * _kept_mlp_width(w)
    routing = size * w.d_model * _kept_routed_inputs(w)
    inner = inner / w.tensor + routing
    keeps_scores = (1.0 - w.flash) * np.where(np.asarray(w.recompute) > 0, 0.0, 1.0)
    scores = (
        keeps_scores
        * (2.0 * size + w.dropout)
        * w.num_heads
        * w.context_tokens
        / (w.tensor * w.context)
    )
    return tokens * (stream + inner + scores), tokens * size * w.d_model / sp


def _kept_mlp_width(w: Workload) -> Array:
    """Channels of the MLPs' width that a block keeps per token: 2 f, 4 f gated, 3 f with a fused gate.

    An expert whose inner activations the router's weights multiply keeps those before and after: 3 f.
    """
    gated = np.asarray(w.mlp_matrices) > 2
    dense = np.where(gated, 4.0 - np.asarray(w.fused_gate), 2.0)
    routed = np.where(np.asarray(w.weighted_inner) > 0, 3.0, dense)
    return np.asarray(
        dense * (w.dense_d_ff + w.num_shared_experts * w.expert_d_ff)
        + routed * w.experts_per_token * w.expert_d_ff
    )


def _kept_routed_inputs(w: Workload) -> Array:
    """Copies of a token's input that its experts keep on one device.

    Inputs and outputs, 2 k, split along the sequence where the stream is; where weights multiply inside,
    inputs alone, k, split over the groups of devices that one expert occupies.
    """
    experts = np.where(np.asarray(w.num_experts) > 0, w.experts_per_token, 0.0)
    inside = _expert_ways(w) / w.expert / w.tensor
    outside = 2.0 / _split_along_sequence(w)
    return np.asarray(experts * np.where(np.asarray(w.weighted_inner) > 0, inside, outside))


def _tokens(w: Workload) -> Number:
    """Tokens of a micro-batch on one device."""
    return w.micro_batch * w.sequence_tokens / w.context


def _split_along_sequence(w: Workload) -> Array:
    return np.where(np.asarray(w.sequence_parallel) > 0, w.tensor, 1.0)


def _mlp_width(w: Workload) -> Number:
    """Channels of the MLPs that a token passes in one block."""
    return w.dense_d_ff + (w.experts_per_token + w.num_shared_experts) * w.expert_d_ff


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Block:
    """Bytes of one block for one micro-batch on one device."""

    kept: Array
    """From the forward to the backward pass."""
    live: Array
    """More while the backward pass is in the block: what it computes again, and its own tensors."""


def _casts(w: Workload) -> Array:
    """Bytes per parameter of the copies in the compute format that the backward pass needs."""
    return np.asarray(np.where(np.asarray(w.zero_stage) >= 2, 0.0, w.cast_bytes))


def _block(w: Workload) -> _Block:
    """Return what a block keeps under each mode of recomputation, and what it adds while it is live.

    Everything, casts of its weights included, without recomputation; its input with `full`; results of
    products, of attention and its input, B (3 h / sp + (2 q + 2 kv + f (2 f gated)) / t) per token, with
    `selective`. Live: the rest of all that, the gradients of the MLP's and of the block's output, and
    where gradients are not written in place that of the largest matrix.
    """
    whole, inputs = activation_bytes_per_layer(w)
    dense, routed = block_params_per_device(w)
    size, tokens, sp = w.activation_bytes, _tokens(w), _split_along_sequence(w)
    gated = np.where(np.asarray(w.mlp_matrices) > 2, 2.0, 1.0)
    width = 2.0 * (w.query_width + w.kv_width) + gated * _mlp_width(w)
    products = tokens * size * (3.0 * w.d_model / sp + width / w.tensor)
    whole = whole + _casts(w) * (dense + routed)
    mode = np.asarray(w.recompute)
    kept = np.where(mode == 1.25, products, whole)
    operators = np.where(np.asarray(w.compiled) > 0, OPERATORS_KEPT_COMPILED, OPERATORS_KEPT)
    kept = np.where(mode == 1.5, operators * whole, kept)
    kept = np.where(mode == 2.0, inputs, kept)
    passing = tokens * size * (_mlp_width(w) / w.tensor + w.d_model / sp)
    own = 1.0 - np.asarray(w.gradient_buffers)
    matrix = w.d_model * np.maximum(w.dense_d_ff, w.expert_d_ff) / w.tensor
    return _Block(
        kept=kept,
        live=whole - kept + passing + own * w.gradient_bytes * matrix,
    )


def _head_bytes(w: Workload) -> Array:
    """Bytes of the final norm and of the head's input, and of the head cast to the compute format."""
    each = 2.0 * w.activation_bytes + w.extra_stream_bytes / 2.0
    table = w.vocab_size * w.d_model / w.tensor
    return np.asarray(_tokens(w) * w.d_model / _split_along_sequence(w) * each + _casts(w) * table)


def _held_micro_batches(w: Workload) -> tuple[Array, Array]:
    """Return how many micro-batches' activations the first and the last stage hold.

    1F1B holds min(m, p) on the first stage and one on the last. The interleaved schedule warms up with
    2 (p - 1 - rank) + (v - 1) p chunks and runs one more: of v chunks a micro-batch, the first stage holds
    (p v + p - 1) / v, the last (p v - p + 1) / v. GPipe holds all.

    Source: Narayanan et al. 2021 (arXiv:2104.04473), section 2.2; Megatron-LM,
    `forward_backward_pipelining_with_interleaving`.
    """
    p, v = np.asarray(w.pipeline), np.asarray(w.virtual)
    several = (v > 1) & (p > 1)
    every = (np.asarray(w.holds_all) > 0) & (p > 1)
    first = np.where(several, (p * v + p - 1.0) / v, p)
    last = np.where(several, (p * v - p + 1.0) / v, 1.0)
    return (
        np.minimum(w.num_micro_batches, np.where(every, w.num_micro_batches, first)),
        np.minimum(w.num_micro_batches, np.where(every, w.num_micro_batches, last)),
    )


def _logits(w: Workload) -> Array:
    """Bytes of the loss of one micro-batch: logits, softmax and their gradients, T V / t (B + 4 to 8).

    A chunked loss computes its gradients at once: V h / t (B + 4) for the head's, T h (B + 4) / 2 for
    its input's and a chunk of the logits of half that size.
    """
    table = w.vocab_size * w.d_model / w.tensor
    whole = _tokens(w) * w.vocab_size / w.tensor * (w.activation_bytes + w.loss_bytes)
    chunked = (w.activation_bytes + 4.0) * (table + 0.6 * _tokens(w) * w.d_model)
    return np.where(np.asarray(w.chunked_loss) > 0, chunked, whole)


def _gathered(w: Workload) -> Array:
    """Bytes of whole parameters in flight under ZeRO-3, in the wire's precision.

    Two layers, or a layer and the table; a pipeline keeps its stage's parameters whole from the first
    micro-batch to the last, and sums the gradients, whole too, in the precision of their reduction
    (torch's FSDP2, `to_accumulated_grad_if_needed`).
    """
    dense, routed = block_params_per_device(w)
    table = w.vocab_size * w.d_model / w.tensor
    layer = np.maximum(2.0 * (dense + routed), dense + routed + table) * w.gather_bytes
    stage = np.ceil(w.num_layers / w.pipeline) * (dense + routed) + table
    stage = stage * (w.gather_bytes + w.reduce_bytes)
    held = np.where(np.asarray(w.pipeline) > 1, stage, layer)
    return np.where(np.asarray(w.zero_stage) >= 3, held, 0.0)


class _Moment(NamedTuple):
    """Bytes of what comes and goes within a step, at one moment of it."""

    gradients: Array
    activations: Array
    logits: Array


def _moments(w: Workload, gradients: Array, constants: MemoryConstants) -> list[_Moment]:
    """Return the moments of a step at which memory can be fullest.

    With l blocks on the device that keep a each (H of the head beside), of which the one in the
    backward pass adds x; n and n' micro-batches in flight on the first and the last stage; Z bytes of
    the loss, g of a block's gradients, E of the embedding's; G gradients in all, of which G0 are there
    from the start: G with buffers or accumulation, nothing otherwise:

        the loss (last stage)                 n' l a + H + Z + G0
        backward of the last block there      n' l a + x + E + G0
        backward of the first block, alone    a + x + E + (l - 1) g     where G0 = 0
        backward on the first of several      n l a + x + G0
        the embedding's gradient              G + 2 E if tied, + E if it is added to another

    E is counted where gradients are not written into buffers; a tied head keeps its part until the
    embedding's backward pass adds to it.
    """
    block, layers = _block(w), np.ceil(w.num_layers / w.pipeline)
    first, last = _held_micro_batches(w)
    logits = _logits(w) * constants.loss_factor
    own = 1.0 - np.asarray(w.gradient_buffers)
    stays = np.where((own == 0.0) | (np.asarray(w.num_micro_batches) > 1), 1.0, 0.0)
    trained = 1.0 - np.asarray(w.frozen)
    table = own * trained * w.gradient_bytes * w.vocab_size * w.d_model / w.tensor
    is_tied = np.where(np.asarray(w.head_copies) < 2, 1.0, 0.0)
    there, scale = stays * gradients, constants.activation_factor
    several = (np.asarray(w.pipeline) > 1) & (not constants.last_stage_only)
    end = scale * layers * block.kept * last
    dense, routed = block_params_per_device(w)
    others = (layers - 1.0) * (dense + routed) / sum(params_per_device(w))
    grown = (1.0 - stays) * gradients * others
    return [
        _Moment(there, end + scale * _head_bytes(w), logits),
        _Moment(there + table, end + scale * block.live, 0.0 * logits),
        _Moment(there + grown + table, scale * (block.kept + block.live), 0.0 * logits),
        _Moment(there, several * scale * (layers * block.kept * first + block.live), 0.0 * logits),
        _Moment(
            gradients + table * (2.0 * is_tied + (1.0 - is_tied) * stays), 0.0 * end, 0.0 * logits
        ),
    ]


def memory_use(w: Workload, constants: MemoryConstants = GPU_MEMORY) -> MemoryUse:
    """Return the bytes per device by kind, at the fullest moment of the step.

    ZeRO-1 shards optimizer states over D workers, ZeRO-2 gradients too, ZeRO-3 (FSDP) parameters
    too; experts are sharded over D / e of them. What comes and goes within the step is the largest of
    its moments (see `_moments`), never their sum.

    Source of the states: Rajbhandari et al. 2020 (arXiv:1910.02054), section 5.
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
    gradients = sharded(2) * w.gradient_bytes * (1.0 - w.frozen) * here
    moments = [_Moment(*(total + part for part in m)) for m in _moments(w, gradients, constants)]
    fullest = np.argmax(np.stack([m.gradients + m.activations + m.logits for m in moments]), axis=0)

    def at_peak(kind: int) -> Array:
        return np.asarray(np.choose(fullest, [m[kind] for m in moments]))

    return MemoryUse(
        params=sharded(3) * w.param_bytes * here,
        gradients=at_peak(0),
        optimizer=sharded(1) * w.optimizer_bytes * (1.0 - w.frozen) * here,
        activations=at_peak(1),
        logits=at_peak(2),
        gathered=total + _gathered(w),
        overhead=total + constants.overhead_bytes + w.buffer_bytes,
    )
