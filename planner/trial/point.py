"""TrialConfig: one fully resolved point. Cross-field rules run when it is built."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from planner.config import Config
from planner.trial.data import BPE, DataConfig
from planner.trial.divisibility import must_divide
from planner.trial.layout import ParallelLayout
from planner.trial.model import ModelConfig
from planner.trial.settings import (
    BatchConfig,
    ExecutionConfig,
    OptimizerConfig,
    PrecisionConfig,
    ScheduleConfig,
    TrainConfig,
)

__all__ = ["TrialConfig"]

_TASKS = {"decoder": "next-token", "vit": "classification"}
"""Family -> the task that it is for."""
_NUM_BYTES = 256


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

    @property
    def task(self) -> str:
        """What is learnt, the default resolved."""
        return self.train.task or _TASKS[self.model.family]

    @model_validator(mode="after")
    def _has_data(self) -> Self:
        if self.task != _TASKS[self.model.family]:
            raise ValueError(
                f"train.task={self.task} needs another model: family {self.model.family} is for "
                f"{_TASKS[self.model.family]}"
            )
        if self.task == "classification" and self.data.mixture:
            raise ValueError("data.mixture mixes text: give data.corpus for classification")
        if self.data.tokenizer == BPE and self.model.vocab_size <= _NUM_BYTES:
            raise ValueError(
                f"a byte-level BPE has more tokens than the {_NUM_BYTES} bytes: "
                f"model.vocab_size={self.model.vocab_size}. Raise it, or use tokenizer: bytes"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        layout, model, batch = self.layout, self.model, self.batch
        must_divide(
            "data_parallel * shard_parallel", layout.data_shards,
            "sequences_per_step", batch.sequences_per_step,
        )  # fmt: skip
        share = batch.sequences_per_step // layout.data_shards
        must_divide("micro_batch_sequences", self.micro_batch_sequences, "a worker's share", share)
        must_divide("tensor_parallel", layout.tensor_parallel, "num_heads", model.heads)
        must_divide("tensor_parallel", layout.tensor_parallel, "num_kv_heads", model.kv_heads)
        must_divide("tensor_parallel", layout.tensor_parallel, "d_ff", model.ff_width)
        ramp = batch.ramp_start_sequences
        if ramp is not None and ramp > batch.sequences_per_step:
            raise ValueError(
                "ramp_start_sequences must not exceed sequences_per_step: "
                f"{ramp} and {batch.sequences_per_step}"
            )
        stages = layout.pipeline_parallel * layout.virtual_pipeline
        if stages > model.num_layers:
            raise ValueError(
                "pipeline_parallel * virtual_pipeline must not exceed num_layers: "
                f"{stages} stages for {model.num_layers} layers"
            )
        must_divide(
            "context_parallel", layout.context_parallel, "sequence_length", model.sequence_length
        )
        if layout.expert_parallel > 1:
            must_divide(
                "expert_parallel", layout.expert_parallel, "num_experts", model.num_experts or 1
            )
            must_divide(
                "expert_parallel", layout.expert_parallel, "data workers", layout.data_shards
            )
        return self
