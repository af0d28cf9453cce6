"""How a trial is trained: batch, optimizer, schedule, precision, execution, length, data."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from planner.config import Config, Count, Fraction, PositiveCount, PositiveFloat

__all__ = [
    "BatchConfig",
    "ExecutionConfig",
    "OptimizerConfig",
    "PrecisionConfig",
    "ScheduleConfig",
    "TrainConfig",
]


class BatchConfig(Config):
    """How much data one optimizer step sees."""

    sequences_per_step: PositiveCount = 16
    """Sequences per optimizer step, over all workers."""
    micro_batch_sequences: PositiveCount | None = None
    """Sequences per forward pass of one worker; by default a worker's whole share."""
    ramp_start_sequences: PositiveCount | None = None
    """Sequences per step at the start of a linear ramp to sequences_per_step; none is no ramp."""
    ramp_fraction: Fraction = 0.2
    """Share of the training tokens over which the ramp goes on."""


class OptimizerConfig(Config):
    """Optimizer and regularisation."""

    name: Literal["adamw", "adam", "sgd", "adagrad", "rmsprop", "lamb", "adafactor", "muon"] = (
        "adamw"
    )
    """Update rule; `muon` updates the layers' matrices and leaves the rest to AdamW."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Weight decay of matrices; norms, biases and embeddings of position have none. Decoupled in
    adamw, lamb, adafactor and muon, added to the gradient in the others."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment (adam, adamw, lamb, and adamw's part of muon)."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the second moment (as beta1, and rmsprop)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Momentum of sgd, rmsprop (by default none) and muon (by default 0.95)."""
    nesterov: bool = False
    """Whether sgd looks ahead along its momentum."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    gradient_clip_norm: PositiveFloat | None = 1.0
    """Largest norm of the gradient; none switches clipping off."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target's probability spread over the vocabulary in training."""
    batch_scaling: Literal["none", "linear", "sqrt"] = "none"
    """How the learning rate grows with sequences_per_step over base_sequences_per_step."""
    base_sequences_per_step: PositiveCount = 16
    """Batch at which learning_rate was chosen."""
    width_scaling: Literal["none", "mup"] = "none"
    """How learning rate, initial values and logits follow the width, so that a learning rate found
    on a narrow model holds for a wide one."""
    base_width: PositiveCount = 128
    """d_model at which learning_rate was chosen."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name == "sgd" and self.nesterov and not self.momentum:
            raise ValueError(
                f"nesterov looks ahead along the momentum of sgd: momentum={self.momentum}. "
                "Set momentum, such as 0.9, or nesterov: false"
            )
        return self


class ScheduleConfig(Config):
    """Learning rate as a function of the step."""

    name: Literal["constant", "cosine", "linear", "wsd", "inverse-sqrt", "step", "cyclical"] = "wsd"
    """Shape after warm-up; `wsd` is warm-up, stable, linear decay."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps that warm up linearly from zero."""
    decay_fraction: Fraction = 0.2
    """Share of the steps that decay, for `wsd`."""
    final_fraction: Fraction = 0.1
    """Learning rate at the end (`cyclical`: at the low points) as a share of the peak."""
    num_drops: PositiveCount = 2
    """Drops of the `step` schedule, evenly spaced."""
    drop_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """What each drop multiplies the learning rate with."""
    num_cycles: PositiveCount = 4
    """Triangles of the `cyclical` schedule."""

    @property
    def stable_fraction(self) -> float:
        """Share of the training before the final decay of `wsd`; 1 for the other schedules.

        A loss inside the decay is lower than that of a longer training at the same compute, so
        the two cannot be compared there.
        """
        return 1.0 - self.decay_fraction if self.name == "wsd" else 1.0

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

    compute: Literal["fp32", "tf32", "bf16", "fp16", "fp8"] = "fp32"
    """Format of matrix products; master weights and optimizer state stay fp32. fp16 scales its
    loss; fp8 (e4m3 forward, e5m2 backward, one scale per tensor) takes the layers' matrices and
    leaves the rest to bf16."""
    reduce: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Format in which gradients are summed over workers; 16 bits halve what is sent."""
    emulate: Literal["none", "fp8-e4m3", "fp8-e5m2", "int8", "int4"] = "none"
    """Format whose rounding the layers' weights get, for studies of accuracy on devices that lack
    it; speed is that of `compute`."""
    emulate_activations: bool = False
    """Whether emulation rounds the inputs of the layers' matrices too."""


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
    prefetch: bool = True
    """Whether the next batch is read while a step is computed."""
    tensorboard: bool = False
    """Whether reports are written as TensorBoard events, beside the trial's checkpoints."""
    fit_micro_batch: bool = False
    """Whether a trial that runs out of memory starts again with smaller micro-batches,
    accumulating more of them, until it fits on all workers."""
    background_checkpoints: bool = False
    """Whether training goes on while a checkpoint is written; a copy of the state is held."""


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
    task: Literal["next-token", "classification"] | None = None
    """What is learnt; by default what the model's family is for: `next-token` for a decoder,
    `classification` of images for a vit."""
    seed: Count = 0
    """Seed of the initialisation, the data order and dropout."""
    max_loss_factor: PositiveFloat = 3.0
    """A validation or training loss above this multiple of the first one counts as divergence."""
    patience_reports: PositiveCount | None = None
    """Reports without a lower validation loss after which training stops; none never does."""

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
