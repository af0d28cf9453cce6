"""What the formulas of memory and speed read: one configuration, or many as arrays.

Every field is a number or an array, and all broadcast together: the layouts of one model have its
widths as numbers and their degrees as arrays, the rows of a table have arrays throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt

from planner.costs.params import ParamCount, attention_matrix_params, count_shape_params
from planner.costs.shapes import ModelShape, shape_of
from planner.errors import ConfigError, did_you_mean
from planner.trial import TrialConfig

__all__ = [
    "RECOMPUTE",
    "Array",
    "Workload",
    "concatenate",
    "model_fields",
    "precision_fields",
    "workload_of",
]

Array = npt.NDArray[np.float64]
Number = Array | float

RECOMPUTE: Final = {
    "none": 0.0, "attention": 1.0, "selective": 1.25, "operators": 1.5, "full": 2.0,
}  # fmt: skip
"""What is recomputed in the backward pass, as the numbers that arrays hold: nothing, the attention core
(Korthikanti et al. 2022), everything but products and attention (the engine's `selective`), half of the
products too (torchtitan's default), or whole blocks."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Workload:
    """A model, its layout and its execution. Widths in channels, lengths in tokens, sizes in bytes."""

    num_layers: Number
    d_model: Number
    query_width: Number
    kv_width: Number
    num_heads: Number
    head_dim: Number
    attention_params: Number
    """Matrix parameters of one block's attention."""
    context_tokens: Number
    """Keys that a query attends to, causality not credited; the mean over blocks."""
    dense_d_ff: Number
    """Width of a dense MLP, times the share of the blocks that have one."""
    expert_d_ff: Number
    """Width of one expert, times the share of the blocks that have experts."""
    mlp_matrices: Number
    vocab_size: Number
    """Entries of the logits; 0 without a head."""
    head_copies: Number
    """Matrices of V h parameters in a model that is on one device: 1 tied, 2 untied."""
    sequence_tokens: Number
    is_causal: Number
    num_experts: Number
    experts_per_token: Number
    num_shared_experts: Number
    other_params: Number
    """Norms, biases, positions and the like."""
    data: Number = 1.0
    """Workers that see different sequences: replicas times shards."""
    shard: Number = 1.0
    """Workers over which states are sharded: some or all of `data`, or of data times context."""
    zero_stage: Number = 0.0
    tensor: Number = 1.0
    sequence_parallel: Number = 0.0
    pipeline: Number = 1.0
    virtual: Number = 1.0
    context: Number = 1.0
    expert: Number = 1.0
    micro_batch: Number = 1.0
    """Sequences per forward pass of one worker."""
    num_micro_batches: Number = 1.0
    recompute: Number = 0.0
    """See RECOMPUTE."""
    early_stop: Number = 0.0
    """Whether recomputation of a block ends with the last tensor that its backward pass reads, as torch's
    checkpoints without re-entry do, so that the last product is not run again."""
    flash: Number = 1.0
    """Whether attention scores are never written to memory."""
    compiled: Number = 0.0
    chunked_loss: Number = 0.0
    dropout: Number = 0.0
    peak_flops_per_second: Number = 1e12
    """Dense peak of the matrix products' precision."""
    attention_peak_flops_per_second: Number = 1e12
    """Dense peak of the attention core's precision."""
    vector_flops_per_second: Number = 1e12
    """Peak outside of tensor cores, where misaligned products run."""
    is_fp8: Number = 0.0
    activation_bytes: Number = 2.0
    """Per stored activation."""
    param_bytes: Number = 2.0
    """Per parameter; the same for the next two."""
    gradient_bytes: Number = 4.0
    optimizer_bytes: Number = 12.0
    """Moments and master weights."""
    reduce_bytes: Number = 4.0
    """Per gradient on the wire."""
    gather_bytes: Number = 2.0
    """Per parameter on the wire, where parameters are sharded."""
    gather_ports: Number = 64.0
    """Network ports of a node through which gathers of sharded parameters run: all, or one."""
    loss_bytes: Number = 8.0
    """Per logit beyond the stored one: softmax and gradient in fp32; 4 where they share a buffer."""
    gradient_buffers: Number = 1.0
    """Whether gradients are written into buffers that are there all the time, as Megatron's and
    DeepSpeed's are, instead of coming up in the backward pass."""
    cast_bytes: Number = 0.0
    """Per parameter: copies in the compute format that the backward pass needs, where the weights
    themselves stay fp32 and are not gathered."""
    extra_stream_bytes: Number = 0.0
    """Per token and channel of a block, what the framework keeps beyond Korthikanti et al.'s count:
    copies by norms and rotary positions that are not fused."""
    fused_gate: Number = 0.0
    """Whether a gated MLP's activation and product are one kernel, which keeps 3 f instead of 4 f."""
    weighted_inner: Number = 0.0
    """Whether the router's weights multiply what an expert's second matrix reads, instead of its output."""
    buffer_bytes: Number = 0.0
    """Communication buffers and workspaces of the framework, per device."""
    bubble: Number = 1.0
    """Pipeline bubble of the schedule over that of 1F1B."""
    holds_all: Number = 0.0
    """Whether the schedule holds every micro-batch's activations, as GPipe does."""
    local_steps: Number = 1.0
    """Steps between averages over the replicas."""
    offloaded: Number = 0.0
    """Whether states wait in the host's memory."""
    frozen: Number = 0.0
    """Share of the weights that are not trained, 1 for low-rank adapters: no gradients, no states."""
    exposed: Number = 1.0
    """Share of tensor- and expert-parallel collectives that products do not hide."""
    attention_gain: Number = 1.0
    """Speed of the attention kernel over FlashAttention 2."""
    release: Number = 0.0
    """Release of the training framework, as a year with its fraction; 0 where it is not told."""
    overlap: Number = 0.5
    """Share of the gradient reduction that may hide behind the backward pass."""

    @property
    def num_devices(self) -> Number:
        """Devices that the layout occupies."""
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def step_tokens(self) -> Number:
        """Tokens of one optimizer step, over all workers."""
        return self.data * self.micro_batch * self.num_micro_batches * self.sequence_tokens


def concatenate(rows: Sequence[Workload]) -> Workload:
    """Return single configurations as one workload of arrays."""
    return Workload(
        **{
            f.name: np.array([getattr(row, f.name) for row in rows], dtype=np.float64)
            for f in fields(Workload)
        }
    )


def model_fields(shape: ModelShape, count: ParamCount | None = None) -> dict[str, float]:
    """Return the fields of a workload that the shape decides.

    An encoder-decoder becomes blocks of mean width: its cross-attentions are spread over all
    blocks.
    """
    count = count or count_shape_params(shape)
    blocks = max(1, shape.num_blocks)
    attentions = (shape.num_layers + 2 * shape.decoder_layers) / blocks
    experts = shape.num_expert_layers / blocks
    dense = shape.dense_d_ff if shape.num_experts else shape.d_ff
    head = shape.has_head and shape.family != "vit"
    return {
        "num_layers": blocks,
        "d_model": shape.d_model,
        "query_width": shape.query_width,
        "kv_width": shape.kv_width,
        "num_heads": shape.num_heads,
        "head_dim": shape.head_dim,
        "attention_params": attention_matrix_params(shape) * attentions,
        "context_tokens": shape.sequence_length * attentions,
        "dense_d_ff": dense * (1.0 - experts),
        "expert_d_ff": shape.d_ff * experts,
        "mlp_matrices": shape.mlp_matrices,
        "vocab_size": shape.vocab_size if head else 0.0,
        "head_copies": 1.0 if shape.tied_head or not shape.has_head else 2.0,
        "sequence_tokens": shape.sequence_length,
        "is_causal": float(shape.is_causal and not shape.decoder_layers),
        "num_experts": shape.num_experts,
        "experts_per_token": shape.experts_per_token,
        "num_shared_experts": shape.num_shared_experts,
        "other_params": count.norms + count.position_embedding + count.other,
        "dropout": float(shape.dropout),
    }


_BUBBLES: Final[Mapping[str, float]] = {
    "interleaved-zero-bubble": 1.0 / 3.0, "zbv-zero-bubble": 1.0 / 3.0, "dualpipe-v": 0.5,
}  # fmt: skip
"""Bubble over that of 1F1B with as many chunks. A third with a split backward pass (Qi et al. 2023,
arXiv:2401.10241, ZB-H1); about half for DualPipe (arXiv:2412.19437, table 2)."""

_MOMENT_BYTES: Final[Mapping[str, float]] = {
    "sgd": 0.0, "momentum": 4.0, "nesterov": 4.0, "adagrad": 4.0, "rmsprop": 4.0, "adam": 8.0,
    "adamw": 8.0, "lamb": 8.0, "adafactor": 0.02, "muon": 4.5,
}  # fmt: skip
"""Bytes of fp32 moments per parameter. Adafactor keeps a row and a column of each matrix (Shazeer and
Stern 2018, arXiv:1804.04235); Muon one momentum per matrix and Adam's two for the rest."""


def optimizer_moment_bytes(name: str) -> float:
    """Return the bytes of moments per parameter that an optimizer keeps.

    Raises:
        ConfigError: The optimizer is not known.

    >>> optimizer_moment_bytes("adamw"), optimizer_moment_bytes("momentum")
    (8.0, 4.0)
    """
    if name not in _MOMENT_BYTES:
        raise ConfigError(f"no optimizer named {name!r}. {did_you_mean(name, _MOMENT_BYTES)}")
    return _MOMENT_BYTES[name]


def precision_fields(
    precision: str, optimizer: str, device_peaks: Mapping[str, float]
) -> dict[str, float]:
    """Return the fields that precision and optimizer decide, for fp32 master weights in place.

    Parameters, gradients and moments stay fp32; matrix products, activations and gathered
    parameters have the compute precision (fp8 keeps activations and attention in bf16).

    Raises:
        KeyError: The device lacks the precision; callers check first.
    """
    half = precision in ("bf16", "fp16", "fp8")
    attention = "bf16" if precision == "fp8" else precision
    return {
        "peak_flops_per_second": device_peaks[precision],
        "attention_peak_flops_per_second": device_peaks[attention],
        "vector_flops_per_second": device_peaks.get("fp32", device_peaks[attention] / 16.0),
        "is_fp8": float(precision == "fp8"),
        "activation_bytes": 2.0 if half else 4.0,
        "loss_bytes": 8.0 if precision in ("fp32", "tf32") else 10.0,
        "gradient_buffers": 0.0,
        "cast_bytes": 2.0 if half else 0.0,
        "param_bytes": 4.0,
        "gradient_bytes": 4.0,
        "optimizer_bytes": optimizer_moment_bytes(optimizer),
        "reduce_bytes": 4.0,
        "gather_bytes": 2.0 if half else 4.0,
    }


def _recipe(config: TrialConfig, device_peaks: Mapping[str, float]) -> dict[str, float]:
    """Return the fields of precision and optimizer for the engine's settings."""
    optimizer = config.optimizer
    fields = precision_fields(config.precision.compute, optimizer.name, device_peaks)
    if optimizer.momentum and optimizer.name in ("sgd", "rmsprop"):
        fields["optimizer_bytes"] += 4.0
    if config.precision.reduce != "fp32":
        fields["reduce_bytes"] = 2.0
    if config.layout.gradient_compression == "powersgd":
        # Factors r (m + n) of an m x n matrix, here square; every parameter keeps its error.
        fields["reduce_bytes"] *= min(1.0, 2 * config.layout.powersgd_rank / config.model.d_model)
        fields["optimizer_bytes"] += 4.0
    shards = config.layout.shard_parallel
    if config.layout.zero_stage == 2 and shards > 1:
        # FSDP2 without resharding holds the shard beside the gathered whole.
        fields["param_bytes"] = fields["gather_bytes"] + fields["param_bytes"] / shards
    return fields


def _extra_stream_bytes(config: TrialConfig, activation_bytes: float) -> float:
    """Return what the engine's blocks keep on a CPU beyond Korthikanti et al.'s count.

    RMSNorm runs there as several operators: each of two keeps its input and the scaled input in fp32
    where one activation was counted, rotary positions one copy. Traced in torch 2.13.

    >>> llama = {"num_layers": 1, "d_model": 64}
    >>> config = TrialConfig.model_validate({"model": llama, "train": {"tokens": 1e6}})
    >>> _extra_stream_bytes(config, 4.0)
    12.0
    """
    norms = 2.0 * (8.0 - activation_bytes) if config.model.norm == "rmsnorm" else 0.0
    return norms + (activation_bytes if config.model.position == "rope" else 0.0)


def workload_of(
    config: TrialConfig, device_peaks: Mapping[str, float], *, on_cpu: bool = False
) -> Workload:
    """Return the workload of a trial on a device with these peaks.

    Args:
        config: The trial.
        device_peaks: FLOP/s by precision.
        on_cpu: Whether workers are cores: offloading changes nothing, norms are not fused, and attention
            with dropout is not either.
    """
    layout, execution = config.layout, config.execution
    recipe = _recipe(config, device_peaks)
    extra = _extra_stream_bytes(config, recipe["activation_bytes"]) if on_cpu else 0.0
    return Workload(
        **model_fields(shape_of(config.model)),
        **recipe,
        extra_stream_bytes=extra,
        flash=float(not (on_cpu and config.model.dropout)),
        bubble=_BUBBLES.get(layout.pipeline_schedule, 1.0),
        holds_all=float(layout.pipeline_schedule == "gpipe"),
        local_steps=layout.local_steps,
        offloaded=float(layout.cpu_offload and not on_cpu),
        data=layout.data_shards,
        shard=layout.shard_parallel,
        zero_stage=layout.zero_stage if layout.shard_parallel > 1 else 0,
        tensor=layout.tensor_parallel,
        sequence_parallel=float(layout.sequence_parallel),
        pipeline=layout.pipeline_parallel,
        virtual=layout.virtual_pipeline,
        context=layout.context_parallel,
        expert=layout.expert_parallel,
        micro_batch=config.micro_batch_sequences,
        num_micro_batches=config.num_micro_batches,
        recompute=RECOMPUTE[execution.activation_checkpointing],
        early_stop=1.0,
        compiled=float(execution.compile),
        chunked_loss=float(execution.chunked_loss),
    )
