"""TrialResult: one row of what came out, and the states that a trial can be in."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["TrialResult", "TrialState"]


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
    """Validation loss at the last validation: nats per token, of images nats per image."""
    val_bits_per_byte: float | None = None
    """Validation loss in bits per byte of text, which compares over tokenizers; absent for token
    files."""
    val_accuracy: float | None = None
    """Share of the validation images whose class was found; absent for text."""
    train_loss: float | None = None
    """Training loss in nats per token, mean since the report before."""
    tokens_per_second: float | None = None
    mfu: float | None = None
    """Model FLOPs utilisation, 6N + attention convention, against the device's peak at this precision."""
    train_seconds: float | None = None
    """Wall-clock seconds inside training steps and validations."""
    elapsed_seconds: float | None = None
    """Wall-clock seconds since the trial's workers were started, over all attempts."""
    data_wait_seconds: float | None = None
    """Part of the training steps' seconds that waited for data, mean over workers."""
    communication_seconds: float | None = None
    """Part of the training steps' seconds that waited for other workers: what computation hides is
    not in it. None where that cannot be told apart (sharded parameters on CUDA)."""
    optimizer_seconds: float | None = None
    """Part of the training steps' seconds in the optimizer's update."""
    compile_seconds: float | None = None
    """Seconds of first steps that compiled; in no other column but elapsed_seconds."""
    gradient_norm: float | None = None
    """Norm of the last step's gradient before clipping; None where nothing asks for it."""
    utilisation_fraction: float | None = None
    """How busy the workers' devices were: CPU time over threads, or NVML's figure."""
    power_watts: float | None = None
    """Mean power of a worker's device; of processors, its threads' share of their packages."""
    energy_source: str | None = None
    """Where power_watts and kwh come from: `nvml`, `rapl` or `modelled`."""
    device_hours: float | None = None
    """elapsed_seconds x workers: what the budget is charged."""
    usd: float | None = None
    kwh: float | None = None
    peak_memory_bytes: float | None = None
    """Largest resident (CPU) or allocated (CUDA) memory of any worker."""
    num_attempts: int = 1
    metrics: dict[str, float] = field(default_factory=dict)
    """Further metrics by name."""
    point: dict[str, Any] = field(default_factory=dict)
    """Parameter of the study's space -> value, as the search chose it: `config` holds no `train.flops`
    any more, but the tokens that it came to."""

    @property
    def step_seconds(self) -> float | None:
        """Wall-clock seconds of a step, validations spread over the steps; None before the first."""
        if self.train_seconds is None or not self.num_steps:
            return None
        return self.train_seconds / self.num_steps
