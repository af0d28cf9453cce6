"""ParallelLayout: how the workers of a trial share its work."""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

from pydantic import Field

from planner.config import Config, PositiveCount

__all__ = ["ParallelLayout"]


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
    """Workers that share one sequence: each holds two chunks of it and gathers the keys and values."""
    expert_parallel: PositiveCount = 1
    """Workers over which experts are spread, inside the data-parallel ones."""
    pipeline_schedule: Literal[
        "gpipe", "1f1b", "interleaved", "interleaved-zero-bubble", "zbv-zero-bubble", "dualpipe-v"
    ] = "1f1b"
    """Order of forward and backward passes in a pipeline; the last two need virtual_pipeline=2."""
    local_steps: PositiveCount = 1
    """Optimizer steps that data-parallel workers take on their own between averaging their
    parameters (local SGD); 1 averages gradients at every step, which learns what one worker does."""
    gradient_compression: Literal["none", "powersgd"] = "none"
    """Whether plain data-parallel workers send thin factors of their gradients in place of the
    matrices; what the factors leave out is added to the next gradient."""
    powersgd_rank: PositiveCount = 4
    """Columns of those factors."""
    cpu_offload: bool = False
    """Whether sharded parameters, gradients and optimizer states wait in the host's memory."""

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
