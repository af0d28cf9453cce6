"""Which configurations the engine runs. This module does not load torch."""

from __future__ import annotations

from planner.errors import ConfigError, InfeasibleError
from planner.trial import TrialConfig

__all__ = ["check_supported", "check_workers"]


def check_supported(config: TrialConfig) -> None:
    """Refuse a configuration that the engine cannot run.

    Raises:
        InfeasibleError: With the rule and the nearest configuration that runs.
    """
    layout, model, execution = config.layout, config.model, config.execution
    unsupported = {
        "shard_parallel": layout.shard_parallel,
        "tensor_parallel": layout.tensor_parallel,
        "pipeline_parallel": layout.pipeline_parallel,
        "context_parallel": layout.context_parallel,
        "expert_parallel": layout.expert_parallel,
    }
    for name, degree in unsupported.items():
        if degree > 1:
            raise InfeasibleError(
                f"the engine runs {name}=1: got {degree}.",
                hint=f"Use layout.data_parallel={layout.num_workers} instead.",
            )
    if model.num_experts is not None:
        raise InfeasibleError(
            f"the engine runs dense models: num_experts={model.num_experts}.",
            hint="Leave model.num_experts out.",
        )
    if execution.activation_checkpointing != "none":
        raise InfeasibleError(
            "the engine runs execution.activation_checkpointing=none: "
            f"got {execution.activation_checkpointing}.",
            hint="Lower batch.micro_batch_sequences to save memory.",
        )


def check_workers(config: TrialConfig, world_size: int) -> None:
    """Refuse to start with another number of workers than the layout needs.

    Raises:
        ConfigError: The numbers differ.
    """
    needed = config.layout.num_workers
    if world_size != needed:
        raise ConfigError(
            f"the layout needs {needed} worker{'s' if needed > 1 else ''}: world_size={world_size}.",
            hint=f"Start {needed} processes, or change layout.data_parallel.",
        )
