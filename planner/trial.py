"""TrialConfig: one fully resolved point, everything that the engine needs; and TrialResult.

Cross-field rules run when the object is built, so a TrialConfig that exists is consistent.
What a configuration costs is in `costs/`; whether it fits a cluster is in `planning.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from planner.config import Config, Count, Fraction, Name, PositiveCount, PositiveFloat

__all__ = [
    "BatchConfig",
    "DataConfig",
    "ExecutionConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelLayout",
    "PrecisionConfig",
    "ScheduleConfig",
    "TrainConfig",
    "TrialConfig",
    "TrialResult",
    "TrialState",
]

BYTE_VOCABULARY = 256


def divisors(number: int) -> list[int]:
    """Return the divisors of a number in rising order.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [d for d in range(1, number + 1) if number % d == 0]


def _must_divide(divisor_name: str, divisor: int, name: str, number: int) -> None:
    if number % divisor:
        allowed = ", ".join(str(d) for d in divisors(number)[:12])
        raise ValueError(
            f"{divisor_name} must divide {name}: {name}={number}, {divisor_name}={divisor}. "
            f"Use one of {allowed}"
        )


class ModelConfig(Config):
    """Shape of a decoder-only transformer."""

    family: Literal["decoder"] = "decoder"
    """Registered family of models."""
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
    """Tokens in the vocabulary."""
    sequence_length: PositiveCount = 128
    """Context in tokens."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation before attention, MLP and head."""
    position: Literal["rope", "learned"] = "rope"
    """Position information."""
    mlp: Literal["gelu", "gated"] = "gelu"
    """Two-matrix GELU MLP, or three-matrix gated (SwiGLU) MLP."""
    tied_head: bool = True
    """Whether the head shares the embedding's matrix."""
    bias: bool = False
    """Whether linear layers and LayerNorm have biases."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of activations dropped in training."""
    num_experts: PositiveCount | None = None
    """Experts per mixture-of-experts MLP; none makes the MLP dense."""
    experts_per_token: PositiveCount = 1
    """Experts that each token is routed to."""

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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _must_divide("num_heads", self.heads, "d_model", self.d_model)
        _must_divide("num_kv_heads", self.kv_heads, "num_heads", self.heads)
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


class BatchConfig(Config):
    """How much data one optimizer step sees."""

    sequences_per_step: PositiveCount = 16
    """Sequences per optimizer step, over all workers."""
    micro_batch_sequences: PositiveCount | None = None
    """Sequences per forward pass of one worker; by default a worker's whole share."""


class OptimizerConfig(Config):
    """Optimizer and regularisation."""

    name: Literal["adamw"] = "adamw"
    """AdamW with decoupled weight decay, fused."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of matrices; norms, biases and embeddings of position have none."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the second moment."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    gradient_clip_norm: PositiveFloat | None = 1.0
    """Largest norm of the gradient; none switches clipping off."""


class ScheduleConfig(Config):
    """Learning rate as a function of the step."""

    name: Literal["constant", "cosine", "linear", "wsd"] = "wsd"
    """Shape after warm-up; `wsd` is warm-up, stable, linear decay."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps that warm up linearly from zero."""
    decay_fraction: Fraction = 0.2
    """Share of the steps that decay, for `wsd`."""
    final_fraction: Fraction = 0.1
    """Learning rate at the end as a share of the peak."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                "warmup_fraction + decay_fraction must not exceed 1: "
                f"{self.warmup_fraction} + {self.decay_fraction}"
            )
        return self


class PrecisionConfig(Config):
    """Number formats."""

    compute: Literal["fp32", "bf16"] = "fp32"
    """Format of matrix products; master weights and optimizer state stay fp32."""


class ParallelLayout(Config):
    """Degrees of parallelism; their product is the number of workers."""

    data_parallel: PositiveCount = 1
    """Replicas of the model that see different data."""
    shard_parallel: PositiveCount = 1
    """Workers over which one replica's states are sharded (ZeRO, FSDP); they see different data."""
    zero_stage: Annotated[int, Field(ge=1, le=3)] = 3
    """What is sharded: 1 optimizer states, 2 and gradients, 3 and parameters."""
    tensor_parallel: PositiveCount = 1
    """Workers that share every matrix."""
    sequence_parallel: bool = False
    """Whether norms are split along the sequence inside a tensor-parallel group."""
    pipeline_parallel: PositiveCount = 1
    """Stages of consecutive layers."""
    virtual_pipeline: PositiveCount = 1
    """Chunks of layers per stage in the interleaved schedule."""
    context_parallel: PositiveCount = 1
    """Workers that share one sequence."""
    expert_parallel: PositiveCount = 1
    """Workers over which experts are spread, inside the data-parallel ones."""

    @property
    def num_workers(self) -> int:
        """Workers (devices) that one trial needs."""
        return (
            self.data_shards
            * self.tensor_parallel
            * self.pipeline_parallel
            * (self.context_parallel)
        )

    @property
    def data_shards(self) -> int:
        """Workers that see different sequences."""
        return prod((self.data_parallel, self.shard_parallel))


class ExecutionConfig(Config):
    """How a step is carried out; none of it changes what is learnt."""

    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What is recomputed in the backward pass."""
    chunked_loss: bool = False
    """Whether logits are computed chunk by chunk and never held whole."""
    compile: bool = False
    """Whether blocks are compiled; the compile time is charged to the trial."""
    threads_per_worker: PositiveCount = 1
    """CPU threads of each worker."""


class TrainConfig(Config):
    """How long to train and how often to look; give one of tokens, tokens_per_param, flops."""

    tokens: PositiveCount | None = None
    """Tokens to train on."""
    tokens_per_param: PositiveFloat | None = None
    """Tokens to train on per non-embedding parameter."""
    flops: PositiveFloat | None = None
    """Training FLOPs to spend; tokens follow from the size."""
    num_validations: PositiveCount = 10
    """Validations during training, evenly spaced; each is a report."""
    validation_tokens: PositiveCount = 32_768
    """Tokens of the validation split that one validation reads."""
    seed: Count = 0
    """Seed of the initialisation, the data order and dropout."""
    max_loss_factor: PositiveFloat = 3.0
    """A validation or training loss above this multiple of the first one counts as divergence."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [
            name for name in ("tokens", "tokens_per_param", "flops")
            if getattr(self, name) is not None
        ]  # fmt: skip
        if len(given) != 1:
            raise ValueError(
                "give exactly one of tokens, tokens_per_param and flops "
                f"(got {', '.join(given) or 'none'})"
            )
        return self


class DataConfig(Config):
    """What to train on."""

    corpus: Name = "python-stdlib"
    """`python-stdlib` (sources of the running interpreter's library), or a path: text file, folder, or `.bin` tokens."""
    tokenizer: Literal["bytes"] = "bytes"
    """How text becomes tokens; ignored for token files."""
    token_dtype: Literal["uint16", "uint32"] = "uint16"
    """Number format of a `.bin` file, little-endian."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the documents (or, of one file, of its end) held back for validation."""


class TrialConfig(Config):
    """One fully resolved point: everything the engine needs."""

    model: ModelConfig
    train: TrainConfig
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    precision: PrecisionConfig = PrecisionConfig()
    layout: ParallelLayout = ParallelLayout()
    execution: ExecutionConfig = ExecutionConfig()
    data: DataConfig = DataConfig()

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step sees, over all workers."""
        return self.batch.sequences_per_step * self.model.sequence_length

    @property
    def micro_batch_sequences(self) -> int:
        """Sequences per forward pass of one worker, the default resolved."""
        share = self.batch.sequences_per_step // self.layout.data_shards
        return self.batch.micro_batch_sequences or share

    @property
    def num_micro_batches(self) -> int:
        """Forward passes that one worker accumulates per optimizer step."""
        share = self.batch.sequences_per_step // self.layout.data_shards
        return share // self.micro_batch_sequences

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        layout, model, batch = self.layout, self.model, self.batch
        _must_divide(
            "data_parallel * shard_parallel", layout.data_shards,
            "sequences_per_step", batch.sequences_per_step,
        )  # fmt: skip
        share = batch.sequences_per_step // layout.data_shards
        _must_divide("micro_batch_sequences", self.micro_batch_sequences, "a worker's share", share)
        _must_divide("tensor_parallel", layout.tensor_parallel, "num_heads", model.heads)
        _must_divide("tensor_parallel", layout.tensor_parallel, "num_kv_heads", model.kv_heads)
        _must_divide("tensor_parallel", layout.tensor_parallel, "d_ff", model.ff_width)
        stages = layout.pipeline_parallel * layout.virtual_pipeline
        if stages > model.num_layers:
            raise ValueError(
                "pipeline_parallel * virtual_pipeline must not exceed num_layers: "
                f"{stages} stages for {model.num_layers} layers"
            )
        _must_divide(
            "context_parallel", layout.context_parallel, "sequence_length", model.sequence_length
        )
        if layout.expert_parallel > 1:
            _must_divide(
                "expert_parallel", layout.expert_parallel, "num_experts", model.num_experts or 1
            )
            _must_divide(
                "expert_parallel", layout.expert_parallel, "data workers", layout.data_shards
            )
        return self


class TrialState(StrEnum):
    """Where a trial stands (DESIGN section 7)."""

    PLANNED = "planned"
    """Chosen, not started."""
    RUNNING = "running"
    """Started; in a ledger without a later line: interrupted."""
    COMPLETED = "completed"
    """Trained to its end."""
    STOPPED = "stopped"
    """Ended early by the scheduler or the budget."""
    INFEASIBLE = "infeasible"
    """Rejected before running, with the reason."""
    OUT_OF_MEMORY = "out_of_memory"
    """Ran out of memory: an observation about the configuration."""
    DIVERGED = "diverged"
    """The loss was not finite or grew past its limit: an observation."""
    FAILED = "failed"
    """Infrastructure or our own code failed: retried, never fitted."""

    @property
    def is_finished(self) -> bool:
        """Whether the trial will not run again."""
        return self not in (TrialState.PLANNED, TrialState.RUNNING)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """One row: configuration, state, metrics, measured cost. Absent is None."""

    trial: str
    """Identifier within the study, such as `t007`."""
    config: dict[str, Any]
    """The TrialConfig as plain data."""
    state: TrialState
    reason: str | None = None
    """Why it ended in its state, where that needs saying."""
    num_workers: int = 1
    num_params: int | None = None
    """All parameters; the tied head counts once."""
    num_params_non_embedding: int | None = None
    """Without token and position embeddings; an untied head counts as embedding."""
    train_tokens: int | None = None
    """Tokens trained on so far."""
    train_flops: float | None = None
    """Training FLOPs done so far, without recomputation."""
    num_steps: int | None = None
    val_loss: float | None = None
    """Validation loss in nats per token at the last validation."""
    train_loss: float | None = None
    """Training loss in nats per token, mean since the report before."""
    tokens_per_second: float | None = None
    mfu: float | None = None
    """Model FLOPs utilisation, 6N + attention convention, against the device's peak at this precision."""
    train_seconds: float | None = None
    """Wall-clock seconds inside training steps and validations."""
    elapsed_seconds: float | None = None
    """Wall-clock seconds since the trial's workers were started, over all attempts."""
    device_hours: float | None = None
    """elapsed_seconds x workers: what the budget is charged."""
    usd: float | None = None
    kwh: float | None = None
    peak_memory_bytes: float | None = None
    """Largest resident (CPU) or allocated (CUDA) memory of any worker."""
    num_attempts: int = 1
    metrics: dict[str, float] = field(default_factory=dict)
    """Further metrics by name."""
