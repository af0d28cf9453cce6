"""`train`: one trial, as one of its workers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from math import ceil
from pathlib import Path
from typing import Any, Final

import torch

from planner.costs.flops import num_train_tokens, train_flops_per_token
from planner.engine.checkpoint import Checkpoints, Saved, check_same, load_newest
from planner.engine.events import Events, check_tensorboard
from planner.engine.failures import classify
from planner.engine.measurement import (
    check_host_memory,
    least_state_bytes,
    peak_memory_bytes,
    reset_peak_memory,
)
from planner.engine.meters import Meters
from planner.engine.parallel.workers import Meeting, Workers
from planner.engine.schedules import sequences_at
from planner.engine.step import Stepper
from planner.engine.stopping import Stopping
from planner.engine.tasks import Samples, load_samples
from planner.errors import TrialError
from planner.trial import TrialConfig, TrialResult, TrialState, divisors
from planner.trial.support import check_supported, check_workers

__all__ = ["OnMetrics", "train"]

_COLUMNS: Final = frozenset(f.name for f in fields(TrialResult))

OnMetrics = Callable[[dict[str, Any]], bool | None]
"""Called by the first worker at every report; False stops the trial."""

_CHECK_STEPS: Final = 10
"""Steps between looks at the loss; looking makes the host wait for the device."""


def train(
    config: TrialConfig,
    *,
    trial: str = "t000",
    on_metrics: OnMetrics | None = None,
    report_at_flops: Sequence[float] = (),
    checkpoint_dir: Path | None = None,
    resume: bool = True,
    rank: int = 0,
    world_size: int = 1,
    init_method: str | None = None,
) -> TrialResult:
    """Train one configuration as one of its workers and return what came out.

    Every worker of the trial makes the same call with its own rank and gets the same result.
    Divergence and running out of memory are results, not errors; so is a lost worker (`failed`).

    Args:
        config: The trial.
        trial: Its identifier, copied into the result.
        on_metrics: Called on rank 0 at every report with a dict whose keys are TrialResult's
            fields. Returning False stops the trial on all workers.
        report_at_flops: Further reports, at the first step that reaches each amount of compute.
        checkpoint_dir: Where a checkpoint is written at every report; None writes none.
        resume: Whether to go on from the newest complete checkpoint there.
        rank: This worker.
        world_size: All workers: `config.layout.num_workers`.
        init_method: Where several workers meet: `tcp://HOST:PORT`, `file://PATH` or `env://`.

    Raises:
        ConfigError: The corpus or the number of workers does not suit the configuration.
        InfeasibleError: The engine cannot run the configuration.
        TrialError: A checkpoint is damaged or cannot be written.
    """
    check_supported(config)
    check_workers(config, world_size)
    meeting = Meeting(rank, world_size, init_method)
    while True:
        with meeting.join(offloads=config.layout.cpu_offload) as workers:
            result = _attempt(
                config, workers, trial, on_metrics, report_at_flops, checkpoint_dir, resume
            )
        if result.state in (TrialState.OUT_OF_MEMORY, TrialState.FAILED):
            # Connections last as long as anything refers to their group, and workers that wait
            # for this one hear that it is gone when they close.
            gc.collect()
        smaller = _with_smaller_batches(config)
        if result.state is not TrialState.OUT_OF_MEMORY or smaller is None:
            return result
        config = smaller


def _with_smaller_batches(config: TrialConfig) -> TrialConfig | None:
    """Return the trial with the next smaller micro-batch, where it asks for one that fits."""
    size = config.micro_batch_sequences
    if not config.execution.fit_micro_batch or size == 1:
        return None
    smaller = max(d for d in divisors(size) if d < size)
    return config.replace(batch=config.batch.replace(micro_batch_sequences=smaller))


def _attempt(
    config: TrialConfig,
    workers: Workers,
    trial: str,
    on_metrics: OnMetrics | None,
    report_at_flops: Sequence[float],
    checkpoint_dir: Path | None,
    resume: bool,
) -> TrialResult:
    """Train once."""
    run = _Run(config, workers, trial)
    try:
        run.prepare(checkpoint_dir, resume=resume)
        run.carry_out(on_metrics, report_at_flops)
    except TrialError:
        raise
    except (RuntimeError, MemoryError, ConnectionError) as error:
        run.fail(error)
    finally:
        run.open.close()
    return run.result()


class _Run:
    """One trial in this process."""

    def __init__(self, config: TrialConfig, workers: Workers, trial: str) -> None:
        self.config, self.workers, self.trial = config, workers, trial
        self.flops_per_sequence = train_flops_per_token(config.model) * config.model.sequence_length
        self.total_sequences = num_train_tokens(config) // config.model.sequence_length
        self.stopping = Stopping(config.train)
        self.step = 0
        self.sequences = 0
        self._reported_sequences = 0
        self._has_compiled = False
        self.report: dict[str, Any] = {}
        self.checkpoints: Checkpoints | None = None
        self.samples: Samples | None = None
        self.events: Events | None = None
        self.meters = Meters(config, workers)
        self.clock = self.meters.clock
        self.open = ExitStack()
        self.open.callback(self.meters.close)
        reset_peak_memory(workers.device)

    def prepare(self, checkpoint_dir: Path | None, *, resume: bool) -> None:
        """Load the corpus, build the model and go to the newest checkpoint."""
        if self.workers.device.type == "cpu":
            torch.set_num_threads(self.config.execution.threads_per_worker)
        if self.config.execution.tensorboard:
            check_tensorboard(checkpoint_dir)
        check_host_memory(least_state_bytes(self.config), self.workers.device)
        self.samples = load_samples(self.config)
        reset_peak_memory(self.workers.device)  # making tokens once is no cost of the configuration
        self.stepper = Stepper(self.config, self.workers, self.samples, self.meters.timers)
        if self.config.execution.prefetch:
            self.open.callback(self.stepper.read_ahead().close)
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.workers.device)
        self._loss_steps = 0
        if checkpoint_dir is None:
            return
        self.checkpoints = Checkpoints(
            checkpoint_dir, self.workers, in_parts=self.stepper.groups.mesh is not None,
            in_background=self.config.execution.background_checkpoints,
        )  # fmt: skip
        if resume:
            self._resume(checkpoint_dir)
        if self.config.execution.tensorboard and self.workers.is_first:
            self.events = Events(checkpoint_dir, self.step)
            self.open.callback(self.events.close)

    def _resume(self, checkpoint_dir: Path) -> None:
        stepper = self.stepper
        saved = load_newest(
            checkpoint_dir, stepper.named, stepper.optimizer, stepper.owed, self._check_same
        )
        if saved is None:
            return
        self.step, self.sequences = saved.step, saved.sequences
        self._reported_sequences = saved.sequences
        self.report = dict(saved.report)
        self.stopping.first_loss = saved.first_loss
        self.stopping.best_val_loss = saved.best_val_loss
        self.stopping.reports_since_best = saved.reports_since_best
        if self.stepper.loss_scale is not None and saved.loss_scale is not None:
            self.stepper.loss_scale.value, self.stepper.loss_scale.calm_steps = saved.loss_scale
        self.clock.elapsed_before = saved.elapsed_seconds
        self.clock.train_seconds = saved.train_seconds
        self.clock.compile_seconds = saved.compile_seconds
        self.meters.timers.go_on_from(saved.part_seconds)

    def _check_same(self, saved: Saved) -> None:
        check_same(
            saved,
            model=self.config.model.model_dump(mode="json"),
            seed=self.config.train.seed,
            corpus_hash=self._corpus_hash(),
        )

    def _corpus_hash(self) -> str:
        return "" if self.samples is None else self.samples.content_hash

    def carry_out(
        self,
        on_metrics: OnMetrics | None,
        report_at_flops: Sequence[float],
    ) -> None:
        """Train to the end, or until it diverges or is stopped."""
        targets = self._report_targets(report_at_flops)
        self.clock.skip()
        with self.meters.timers.waits(self.workers.world_size):
            self._train(targets, on_metrics)
        if self.checkpoints is not None:
            self.checkpoints.close()
        if self.stopping.is_running:
            self.stopping.state = TrialState.COMPLETED

    def _train(self, targets: list[int], on_metrics: OnMetrics | None) -> None:
        self.meters.timers.is_running = True
        while self.stopping.is_running and self.sequences < self.total_sequences:
            before = self.sequences
            loss = self._step()
            due = any(before < target <= self.sequences for target in targets)
            if due or self.step % _CHECK_STEPS == 0 or self.stopping.first_loss is None:
                self.stopping.see_training_loss(self._mean_over_workers(loss), self.step)
                self.meters.timers.settle()  # the host has waited already
            if due and self.stopping.is_running:
                self.meters.timers.is_running = False
                self._report(on_metrics)
                self.meters.timers.is_running = True

    def _step(self) -> torch.Tensor:
        """Take one step and return this worker's mean loss."""
        left = self.total_sequences - self.sequences
        wanted = sequences_at(self.config, self.sequences / self.total_sequences)
        unit = self.config.micro_batch_sequences * self.config.layout.data_shards
        if self.config.layout.pipeline_parallel > 1:
            unit = wanted  # its schedule has a fixed number of micro-batches
        size = min(wanted, -(-left // unit) * unit)
        progress = min(1.0, (self.sequences + size) / self.total_sequences)
        loss = self.stepper.step(self.sequences, size, progress)
        if self.config.execution.compile and not self._has_compiled:
            self._has_compiled = True
            self.clock.lap_compilation()
            self._reported_sequences += size
        self._loss_sum += loss
        self._loss_steps += 1
        self.step += 1
        self.sequences += size
        return loss

    def _report_targets(self, report_at_flops: Sequence[float]) -> list[int]:
        """Return the numbers of sequences at which to report."""
        number = self.config.train.num_validations
        even = [ceil(self.total_sequences * k / number) for k in range(1, number + 1)]
        asked = [ceil(flops / self.flops_per_sequence - 1e-9) for flops in report_at_flops]
        return sorted({*even, *asked})

    def _mean_over_workers(self, value: torch.Tensor) -> float:
        """Return the mean of a worker's loss; a collective call for which the host waits."""
        total = float(self.workers.sum(value.detach().double().clone()))
        return total * self.stepper.loss_weight

    def _report(self, on_metrics: OnMetrics | None) -> None:
        """Validate, write a checkpoint, tell the caller and hear whether to stop; collective."""
        new_sequences = self.sequences - self._reported_sequences
        self._reported_sequences = self.sequences
        self.clock.lap_steps(new_sequences * self.config.model.sequence_length)
        found = self.stepper.validate()
        self.clock.lap_validation()
        train_loss = self._mean_over_workers(self._loss_sum) / self._loss_steps
        self._loss_sum.zero_()
        self._loss_steps = 0
        norm = self.stepper.gradient_norm
        self.report = {
            **_in_columns(found),
            "train_loss": train_loss,
            "gradient_norm": None if norm is None else float(norm),
            **self.meters.measured(self.step, self.sequences),
        }
        self.stopping.see_val_loss(found["val_loss"], self.step)
        if not self.stopping.is_running:
            return
        if self.checkpoints is not None:
            self._save(self.checkpoints)
        if self.sequences < self.total_sequences:
            self.stopping.check_patience()
        stop = False
        if self.events is not None:
            self.events.write(self.report)
        if on_metrics is not None and self.workers.is_first:
            stop = on_metrics(dict(self.report)) is False
        is_stopped = self.workers.any(stop) and self.sequences < self.total_sequences
        if is_stopped and self.stopping.is_running:
            self.stopping.end(TrialState.STOPPED, "stopped by the caller at a report")
        self.clock.skip()

    def _save(self, checkpoints: Checkpoints) -> None:
        scale = self.stepper.loss_scale
        saved = Saved(
            step=self.step,
            sequences=self.sequences,
            train_seconds=self.clock.train_seconds,
            elapsed_seconds=self.clock.elapsed_seconds,
            compile_seconds=self.clock.compile_seconds,
            part_seconds=self.meters.timers.seconds(),
            first_loss=self.stopping.first_loss or 0.0,
            best_val_loss=self.stopping.best_val_loss,
            reports_since_best=self.stopping.reports_since_best,
            loss_scale=None if scale is None else (scale.value, scale.calm_steps),
            corpus_hash=self._corpus_hash(),
            model=self.config.model.model_dump(mode="json"),
            seed=self.config.train.seed,
            report=self.report,
        )
        stepper = self.stepper
        checkpoints.save(saved, stepper.named, stepper.optimizer, stepper.owed)

    def fail(self, error: Exception) -> None:
        """Turn an error into the state in which it leaves the trial, and tell the other workers."""
        known = classify(error)
        if known is None:
            raise error
        state, reason = known
        if state is TrialState.OUT_OF_MEMORY:
            self.workers.leave_reason(reason)
        elif (first := self.workers.read_reason()) is not None:
            state, reason = TrialState.OUT_OF_MEMORY, f"{first} (on another worker)"
        self.stopping.end(state, reason)

    def result(self) -> TrialResult:
        """Return the trial's row."""
        last = {k: v for k, v in self.report.items() if k in _COLUMNS - {"metrics"}}
        values = last | self.meters.counted(self.step, self.sequences)
        if self.stopping.state is not TrialState.COMPLETED:
            peak = peak_memory_bytes(self.workers.device)
            values["peak_memory_bytes"] = max(peak, values.get("peak_memory_bytes") or 0.0)
        metrics: dict[str, float] = dict(self.report.get("metrics", {}))
        if self.samples is not None:
            metrics |= self.samples.facts(self.sequences)
        if self.config.precision.emulate != "none":
            metrics["emulated_precision"] = 1.0
        if self.meters.hides_communication:
            metrics["communication_overlapped"] = 1.0
        if self.config.execution.fit_micro_batch:
            metrics["micro_batch_sequences"] = float(self.config.micro_batch_sequences)
        return TrialResult(
            trial=self.trial,
            config=self.config.model_dump(mode="json"),
            state=self.stopping.state,
            reason=self.stopping.reason,
            num_workers=self.workers.world_size,
            metrics=metrics,
            **values,
        )


def _in_columns(found: dict[str, float]) -> dict[str, Any]:
    """Return metrics under their columns of TrialResult, those that have none in `metrics`."""
    own = {name: value for name, value in found.items() if name in _COLUMNS}
    return own | {"metrics": {name: v for name, v in found.items() if name not in own}}
