"""Seconds of one optimizer step, by what they are spent on.

A layer's time is the larger of what the device needs and what the CPU needs to launch it, with a
soft maximum; a stage repeats it over its layers; a pipeline over its micro-batches; the step adds
what is not hidden of the gradient reduction, and the optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from planner.costs.cluster import Cluster
from planner.costs.links import (
    all_reduce_seconds,
    all_to_all_seconds,
    gather_seconds,
)
from planner.costs.memory import block_params_per_device, params_per_device
from planner.costs.workload import Array, Number, Workload

__all__ = ["Efficiency", "StepTime", "default_efficiency", "step_time", "tile_efficiency"]

NORMAL_90: Final = 1.645
"""Standard deviations to either end of a 90 % interval."""
_LOG_SIGMA: Final = 0.13
"""Log standard deviation of measured over predicted step seconds without calibration, over the sources
that benchmarks/costs.py reads."""
_WEAK: Final = 1.3
"""Times as much where the model is weak: experts, fp8, context rings."""
HOST_BYTES_PER_SECOND: Final = 2e10
"""What one worker gets of its host's memory and bus, where states are offloaded (recalled)."""
TILES_TO_FILL: Final = 30.0
"""Output tiles of a product at which a GPU reaches half of its rate."""
EXPERT_FILL: Final = 2.0
"""Tiles that one expert's product needs, over those of a product alone: each expert has its own launch
(fitted to Megatron-Bridge's tables)."""
FP8_RATE: Final = 0.88
"""Achievable share of the fp8 peak over that of the bf16 peak: H100 0.71 to 0.80 (ml-engineering)."""
FP8_CAST_BYTES: Final = 6.0
"""Bytes per channel and pass to scale and cast a product's input, forward and backward: 2 + 1, twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """What a cluster reaches of what its parts promise; the constants that calibration fits."""

    gemm: float = 0.8
    """Large aligned matrix products, as a share of the achievable peak."""
    grouped: float = 0.5
    """Experts' products, over `gemm`; 0.35 to 0.7 between frameworks' releases."""
    attention: float = 0.29
    """Fused attention, as a share of the peak; FlashAttention 1 on A100."""
    memory: float = 0.8
    """Elementwise kernels, as a share of the memory bandwidth."""
    network: float = 0.6
    """Collectives, as a share of the link."""
    launch_seconds: float = 820e-6
    """CPU time to launch one forward pass of one layer, with an eager framework: 0.85 to 0.95 ms on the
    hosts of vTrain's tables, less with newer ones."""
    step_seconds: float = 0.0
    """Fixed time of a step."""


def default_efficiency(cluster: Cluster) -> Efficiency:
    """Return the constants before any measurement on the cluster.

    Those of accelerators are medians over the sources of benchmarks/costs.py. A core of a CPU has its
    own; a TPU runs whole compiled steps, so that next to nothing is launched (recalled).
    """
    base = Efficiency()
    if cluster.device.is_cpu:
        return replace(
            base, gemm=1.0, attention=0.3, launch_seconds=150e-6, network=0.5, step_seconds=1e-3
        )
    if cluster.device.is_tpu:
        return replace(base, gemm=1.0, attention=0.45, launch_seconds=2e-5)
    return base


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepTime:
    """Seconds of one step; the parts sum to the total."""

    matmul: Array
    attention: Array
    elementwise: Array
    launch: Array
    """What the CPU's launches add beyond the device's time."""
    tensor: Array
    context: Array
    expert: Array
    gather: Array
    """What gathering sharded parameters adds beyond the compute that it overlaps."""
    pipeline: Array
    """Bubble, imbalance of stages and transfers between them."""
    data: Array
    """Exposed gradient reduction."""
    optimizer: Array
    other: Array

    @property
    def total(self) -> Array:
        """The sum of all parts."""
        return (
            self.matmul + self.attention + self.elementwise + self.launch + self.tensor
            + self.context + self.expert + self.gather + self.pipeline + self.data + self.optimizer
            + self.other
        )  # fmt: skip


def tile_efficiency(size: Number, tile: float = 128.0) -> Array:
    """Return the share of the last tile that is used, (x / 128) / ceil(x / 128).

    >>> float(tile_efficiency(1800.0)), float(tile_efficiency(1728.0))
    (0.9375, 0.9642857142857143)
    """
    tiles = size / tile
    return np.asarray(tiles / np.ceil(tiles))


def product_efficiency(tokens: Number, width: Number, fill: float) -> Array:
    """Return the share of the rate that a product with tokens x width results reaches.

    Whole tiles, and enough of them: tile(T) tile(N) n / (n + n0) with n = T N / (128 x 256) tiles, where
    n0 is a quarter of a device's multiprocessors (fitted; waves that are not full, Nvidia's matrix
    multiplication background guide).

    >>> round(float(product_efficiency(4096.0, 4096.0, 30.0)), 3)
    0.945
    """
    tiles = tokens * width / (128.0 * 256.0)
    return tile_efficiency(tokens) * tile_efficiency(width) * tiles / (tiles + fill)


def default_log_sigma(w: Workload) -> Array:
    """Return the spread of the uncalibrated estimate, greater for experts, fp8 and context rings."""
    weak = (
        (np.asarray(w.num_experts) > 0) | (np.asarray(w.is_fp8) > 0) | (np.asarray(w.context) > 1)
    )
    return np.where(weak, _WEAK * _LOG_SIGMA, _LOG_SIGMA)


def default_interval(w: Workload, seconds: Number) -> tuple[Array, Array]:
    """Return the ends of the 90 % interval of uncalibrated step seconds."""
    reach = np.exp(NORMAL_90 * default_log_sigma(w))
    return np.asarray(seconds / reach), np.asarray(seconds * reach)


def _passes(w: Workload) -> Array:
    """Return forward-sized passes through a block: 1 forward, 2 backward, and what is recomputed."""
    mode = np.asarray(w.recompute)
    return np.asarray(3.0 + 1.0 * (mode == 2.0) + 0.5 * (mode == 1.5))


def _tokens(w: Workload) -> Number:
    return w.micro_batch * w.sequence_tokens / w.context


def _matmul_seconds(w: Workload, rate: Number, cluster: Cluster, e: Efficiency) -> Array:
    """Seconds of a block's matrix products over all passes, 2 T K N / (P e) each, e of `product_efficiency`.

    A full recomputation that stops early leaves out the MLP's last product.
    """
    tokens, t, passes = _tokens(w), w.tensor, _passes(w) - w.frozen
    skipped = w.early_stop * (np.asarray(w.recompute) == 2.0)
    grid = cluster.device.is_cpu or cluster.device.is_tpu
    fill = 0.0 if grid else TILES_TO_FILL
    from_width = product_efficiency(tokens, w.d_model, fill)
    qkv = (w.query_width + 2.0 * w.kv_width) / t
    out = w.query_width / t
    attention = qkv / product_efficiency(tokens, qkv, fill) + out / from_width
    attention = attention / (qkv + out) * w.attention_params / t
    width = np.maximum(w.dense_d_ff / t, 1.0)
    inner = w.mlp_matrices - 1.0
    dense = passes * inner / product_efficiency(tokens, inner * width, fill)
    dense = dense + (passes - skipped) / from_width
    seconds = passes * attention + w.d_model * w.dense_d_ff / t * dense
    seconds = 2.0 * tokens * seconds / rate
    per_expert = tokens * w.experts_per_token / np.maximum(w.num_experts, 1.0) * w.expert
    width = np.maximum(w.expert_d_ff / t, 1.0)
    share = product_efficiency(np.maximum(per_expert, 1.0), width, EXPERT_FILL * fill)
    shared = w.num_shared_experts / product_efficiency(tokens, width, fill)
    active = (w.experts_per_token / share + shared) * w.expert_d_ff / t
    grouped = passes * 2.0 * tokens * w.mlp_matrices * w.d_model * active / (rate * e.grouped)
    return np.asarray(seconds + grouped)


def _attention_seconds(w: Workload, rate: Number, cluster: Cluster, e: Efficiency) -> Array:
    """Seconds of one forward pass of the attention core.

    Fused: 4 T s q / t FLOPs, half of them when causal, heads padded to 32 channels; a ring over the
    sequence keeps a third of the causal saving. Plain: the whole matrix as products at half the
    rate, outside of the tensor cores where a head's channels are no multiple of 8, and the scores
    through memory (written, masked, normalised, dropped, read: 6 passes of B bytes).
    """
    flops = 4.0 * _tokens(w) * w.context_tokens * w.query_width / w.tensor
    saved = np.where(np.asarray(w.context) > 1, 0.17, 0.5) * np.asarray(w.is_causal)
    padded = flops * (1.0 - saved) / tile_efficiency(w.head_dim, 32.0)
    fused = padded / (w.attention_peak_flops_per_second * e.attention * w.attention_gain)
    scores = _tokens(w) * w.context_tokens * w.num_heads / w.tensor
    bandwidth = cluster.device.memory_bytes_per_second * e.memory
    aligned = np.mod(w.head_dim, 8.0) == 0
    batched = np.where(aligned, rate * 0.5, np.minimum(rate * 0.5, w.vector_flops_per_second))
    plain = flops / batched + 6.0 * w.activation_bytes * scores / bandwidth
    return np.where(np.asarray(w.flash) > 0, fused, plain)


def _elementwise_seconds(w: Workload, cluster: Cluster, e: Efficiency) -> Array:
    """Seconds of one forward pass of norms, residuals, dropout and activation functions.

    Bytes per token: 10 B h (/ t under sequence parallelism) + 2 (g - 1) B f / t; fp8 adds the casts
    of every product's input.
    """
    sp = np.where(np.asarray(w.sequence_parallel) > 0, w.tensor, 1.0)
    width = w.dense_d_ff + (w.experts_per_token + w.num_shared_experts) * w.expert_d_ff
    stream = 10.0 * w.d_model / sp
    inner = 2.0 * (w.mlp_matrices - 1.0) * width / w.tensor
    fused = np.where(np.asarray(w.compiled) > 0, 0.6, 1.0)
    casts = FP8_CAST_BYTES * w.is_fp8 * (2.0 * w.d_model / sp + (w.query_width + width) / w.tensor)
    num_bytes = _tokens(w) * (w.activation_bytes * (stream + inner) * fused + casts)
    return num_bytes / (cluster.device.memory_bytes_per_second * e.memory)


def _soft_maximum(a: Array, b: Array, power: float) -> Array:
    """Return (a^n + b^n)^(1/n)."""
    top = np.maximum(np.maximum(a, b), 1e-30)
    return np.asarray(top * ((a / top) ** power + (b / top) ** power) ** (1.0 / power))


def _launch_seconds(w: Workload, e: Efficiency) -> Array:
    """CPU seconds to launch one forward-sized pass of a block.

    A third more where the tensor group takes a whole node of eight and spans both of its sockets, 1.3
    times with gathers, half when compiled, twice with experts.
    """
    tensor = np.where(np.asarray(w.tensor) >= 8, 1.35, 1.0)
    sharded = np.where(np.asarray(w.zero_stage) >= 3, 1.3, 1.0)
    compiled = np.where(np.asarray(w.compiled) > 0, 0.5, 1.0)
    experts = np.where(np.asarray(w.num_experts) > 0, 2.0, 1.0)
    return e.launch_seconds * tensor * sharded * compiled * experts


def _logit_seconds(w: Workload, rate: Number, cluster: Cluster, e: Efficiency) -> Array:
    """Seconds of logits and loss of one micro-batch, forward and backward.

    6 T h V / t FLOPs, and 24 bytes per logit through memory (written, cast, softmax in fp32, and
    the same backward), half of that when compiled.
    """
    logits = _tokens(w) * w.vocab_size / w.tensor
    moved = np.where(np.asarray(w.compiled) > 0, 12.0, 24.0) * logits
    products = 6.0 * logits * w.d_model / rate
    return products + moved / (cluster.device.memory_bytes_per_second * e.memory)


def _tensor_seconds(w: Workload, cluster: Cluster, e: Efficiency) -> Array:
    """Seconds of a block's tensor-parallel collectives: 4 all-reduces of T h, 6 with full recomputation."""
    num_bytes = _tokens(w) * w.d_model * np.minimum(w.activation_bytes, 2.0)
    one = all_reduce_seconds(num_bytes, w.tensor, 1.0, cluster, e.network)
    return np.asarray(w.exposed * (4.0 + 2.0 * (np.asarray(w.recompute) == 2.0)) * one)


def _context_seconds(w: Workload, cluster: Cluster, e: Efficiency) -> Array:
    """Seconds of a block's ring over keys and values, 3 passes of 2 T kv (c - 1)."""
    num_bytes = 2.0 * _tokens(w) * w.kv_width / w.tensor * 2.0 * w.context
    return 3.0 * gather_seconds(num_bytes, w.context, w.tensor, cluster, e.network)


def _expert_seconds(w: Workload, cluster: Cluster, e: Efficiency) -> Array:
    """Seconds of a block's experts beside their products.

    4 all-to-alls of top-k T h / t (expert groups lie over tensor ranks first, as in Megatron), and
    8 passes of the permuted tokens through memory, forward and backward.
    """
    routed = w.experts_per_token * _tokens(w) * w.d_model * 2.0 / w.tensor
    one = all_to_all_seconds(routed, w.expert, 1.0, cluster, e.network)
    permute = 8.0 * routed / (cluster.device.memory_bytes_per_second * e.memory)
    return np.where(np.asarray(w.num_experts) > 0, 4.0 * w.exposed * one + permute, 0.0)


def _gather_layer_seconds(w: Workload, cluster: Cluster, e: Efficiency) -> Array:
    """Seconds to gather a block's sharded parameters twice and to scatter its gradients.

    Once per micro-batch; a pipeline keeps them whole and does so once a step.
    """
    dense, routed = block_params_per_device(w)
    num_bytes = (dense + routed) * (2.0 * w.gather_bytes + w.reduce_bytes)
    stride = w.tensor * w.context
    seconds = gather_seconds(num_bytes, w.shard, stride, cluster, e.network, w.gather_ports)
    seconds = seconds + 2.0 * gather_seconds(0.0, w.shard, stride, cluster)
    seconds = seconds / np.where(np.asarray(w.pipeline) > 1, w.num_micro_batches, 1.0)
    return np.where(np.asarray(w.zero_stage) >= 3, seconds, 0.0)


def _data_seconds(w: Workload, cluster: Cluster, e: Efficiency) -> Array:
    """Seconds of the gradient reduction over the workers that hold the same parameters (once a step).

    They are D = d c, for those of a context group see other tokens, over those that share one copy
    under ZeRO-3.
    """
    dense, routed = params_per_device(w)
    shard = np.where(np.asarray(w.zero_stage) >= 3, np.maximum(w.shard, 1.0), 1.0)
    replicas = np.maximum(w.data * w.context / shard, 1.0)
    local = (dense + routed) / shard * w.reduce_bytes
    once = all_reduce_seconds(local, replicas, w.tensor * shard, cluster, e.network)
    return once / w.local_steps


def _optimizer_seconds(w: Workload, cluster: Cluster, e: Efficiency) -> Array:
    """Seconds to read and write the states once: 2 (optimizer + parameters) + gradients bytes."""
    dense, routed = params_per_device(w)
    cut = np.where(np.asarray(w.zero_stage) >= 1, np.maximum(w.shard, 1.0), 1.0)
    per_param = 2.0 * (w.optimizer_bytes + w.param_bytes) + w.gradient_bytes
    on_device = cluster.device.memory_bytes_per_second * e.memory
    bandwidth = np.where(np.asarray(w.offloaded) > 0, HOST_BYTES_PER_SECOND, on_device)
    return np.asarray((dense + routed) / cut * per_param / bandwidth)


def _pipeline_seconds(
    w: Workload, cluster: Cluster, e: Efficiency, layer: Array, logits: Array
) -> tuple[Array, Array]:
    """Return a stage's mean seconds for a micro-batch, and what the pipeline adds to a step.

    Bubble (p - 1) / v stages, less with a split backward pass; the last stage's logits and uneven layers, m times; transfers of T h
    between stages, v times a micro-batch.
    """
    device, several = cluster.device, np.asarray(w.pipeline) > 1
    layers = w.num_layers / w.pipeline
    last = layers * layer + logits
    longest = np.where(several, np.maximum(np.ceil(layers) * layer, last), last)
    mean = layers * layer + logits / w.pipeline
    hop_bytes = 4.0 * _tokens(w) * w.d_model / w.tensor
    slow = min(device.scale_out_bytes_per_second, device.scale_up_bytes_per_second)
    inside = w.tensor * w.context * w.data < cluster.devices_per_domain
    link = np.where(inside, device.scale_up_bytes_per_second, slow) * e.network
    transfers = np.where(several, w.num_micro_batches * w.virtual * hop_bytes / link, 0.0)
    bubble = (w.pipeline - 1.0) / w.virtual * mean * w.bubble
    return mean, np.asarray(bubble + w.num_micro_batches * (longest - mean) + transfers)


def step_time(w: Workload, cluster: Cluster, e: Efficiency | None = None) -> StepTime:
    """Return the seconds of one optimizer step by part.

    layer = softmax_6(matmul + attention + elementwise + collectives, launch), with sharded
    parameters softmax_6(layer, gathers); stage = layers * layer (+ logits on the last one);
    step = m * max(stage) + (p - 1) / v * mean(stage) + exposed reduction + optimizer. Frozen weights
    have no weight gradients: two passes instead of three (Hu et al. 2021, arXiv:2106.09685).
    """
    e = e or default_efficiency(cluster)
    scaled = np.where(np.asarray(w.is_fp8) > 0, FP8_RATE, 1.0)
    rate = w.peak_flops_per_second * cluster.device.achievable_fraction * e.gemm * scaled
    passes, mode = _passes(w), np.asarray(w.recompute)
    matmul = _matmul_seconds(w, rate, cluster, e)
    core_passes = 3.5 + 1.0 * (mode == 1.0) + 1.0 * (mode == 2.0)
    attention = core_passes * _attention_seconds(w, rate, cluster, e)
    elementwise = (passes + 1.0 * (mode == 1.25) + 0.5 * (mode == 1.5)) * _elementwise_seconds(
        w, cluster, e
    )
    tensor = _tensor_seconds(w, cluster, e)
    context = _context_seconds(w, cluster, e)
    expert = _expert_seconds(w, cluster, e)
    on_device = matmul + attention + elementwise + tensor + context + expert
    layer = _soft_maximum(on_device, passes * _launch_seconds(w, e), 6.0)
    with_gather = _soft_maximum(layer, _gather_layer_seconds(w, cluster, e), 6.0)
    logits = _logit_seconds(w, rate, cluster, e)
    stage, pipeline = _pipeline_seconds(w, cluster, e, with_gather, logits)
    reduction = _data_seconds(w, cluster, e) * (1.0 - w.frozen)
    hidden = np.minimum(reduction * w.overlap, 0.5 * w.num_micro_batches * stage)
    each = w.num_micro_batches * w.num_layers / w.pipeline
    zero = 0.0 * pipeline
    return StepTime(
        matmul=zero + each * matmul + w.num_micro_batches * logits / w.pipeline,
        attention=zero + each * attention,
        elementwise=zero + each * elementwise,
        launch=zero + each * (layer - on_device),
        tensor=zero + each * tensor,
        context=zero + each * context,
        expert=zero + each * expert,
        gather=zero + each * (with_gather - layer),
        pipeline=zero + pipeline,
        data=zero + reduction - hidden,
        optimizer=zero + _optimizer_seconds(w, cluster, e) * (1.0 - w.frozen),
        other=zero + e.step_seconds,
    )
