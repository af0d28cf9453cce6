"""One optimizer step: accumulate micro-batches, average, clip, update; and validation."""

from __future__ import annotations

from typing import Any

import torch

from planner.engine.data.windows import Batch
from planner.engine.optimizers import build_optimizer
from planner.engine.parallel.build import build_local_model
from planner.engine.parallel.gradients import scale_gradients, squared_norm, sum_gradients
from planner.engine.parallel.groups import make_groups, sum_in
from planner.engine.parallel.tied import TiedEmbedding
from planner.engine.parallel.workers import Workers
from planner.engine.precision import COMPUTE_DTYPES, REDUCE_DTYPES, check_device
from planner.engine.precision.loss_scale import LossScale
from planner.engine.prefetch import Place, Prefetcher
from planner.engine.schedules import learning_rate_factor, scaled_learning_rate
from planner.engine.tasks import Samples, make_task
from planner.engine.timers import Timers
from planner.trial import TrialConfig

__all__ = ["Stepper"]


class Stepper:
    """Model, optimizer and data of one worker, ready to take steps."""

    def __init__(
        self,
        config: TrialConfig,
        workers: Workers,
        samples: Samples,
        timers: Timers | None = None,
    ) -> None:
        self.config, self.workers, self.samples = config, workers, samples
        self.groups = make_groups(config.layout, workers.rank, workers.device.type)
        self.task = make_task(config, samples, self.groups)
        check_device(config.precision, workers.device)
        compute = COMPUTE_DTYPES[config.precision.compute]
        self.loss_scale = LossScale() if config.precision.compute == "fp16" else None
        self.local = build_local_model(config, self.groups, workers.device, compute)
        self.named = self.local.named_parameters()
        self.timers = timers or Timers(workers.device)
        self.gradient_norm: torch.Tensor | None = None
        self._prefetcher: Prefetcher | None = None
        self._following: tuple[int, int] | None = None
        self._own_steps = 0
        self._arrange_updates()
        self._arrange_passes()

    def _arrange_updates(self) -> None:
        """Build the optimizer over what this worker updates, and sort parameters by their norms."""
        updated = self.named
        self._partition = None
        if self.groups.partitions_optimizer:
            from planner.engine.parallel.shard import Partition

            self._partition = Partition(self.named, self.groups)
            updated = self._partition.own
        self.optimizer = build_optimizer(self.config.optimizer, updated, self.config.model.d_model)
        self._all = [parameter for _, parameter in self.named]
        self._partial = [p for name, p in self.named if name in self.local.partial]
        self._tied = TiedEmbedding.of(self.local, self.groups)
        counted = [(name, p) for name, p in self.named if p is not self._tied.copy]
        spread = self.local.split | self.local.expert
        self._split = [p for name, p in counted if name in self.local.split]
        self._experts = [p for name, p in counted if name in self.local.expert]
        self._shared = [p for name, p in self.named if name not in self.local.expert]
        self._replicated = [p for name, p in counted if name not in spread]

        self._compression = None
        layout = self.config.layout
        if layout.gradient_compression == "powersgd":
            from planner.engine.parallel.compression import PowerSgd

            self._compression = PowerSgd(
                self.named, self.groups.replicas, self.groups.num_replicas, layout.powersgd_rank,
                self.config.train.seed,
            )  # fmt: skip

    @property
    def owed(self) -> dict[str, torch.Tensor]:
        """What compressed gradients owe, by name."""
        return {} if self._compression is None else self._compression.tensors

    def _arrange_passes(self) -> None:
        self._context = None
        if self.config.layout.context_parallel > 1:
            from planner.engine.parallel.context import ContextPart

            self._context = ContextPart.of(self.groups)
        self._pipeline = None
        if self.config.layout.pipeline_parallel > 1:
            from planner.engine.parallel.pipeline import Pipeline

            self._pipeline = Pipeline(
                self.local.stages, self.config, self.groups, self.workers.device,
                lambda logits, targets: self.task.mean_loss(logits, targets) * self._scale,
            )  # fmt: skip

    def read_ahead(self) -> Prefetcher:
        """From now on, read the next batch while a step is computed; return what is to be closed."""
        self._prefetcher = Prefetcher(self._read)
        return self._prefetcher

    @property
    def loss_weight(self) -> float:
        """What to multiply a sum of losses over all workers with to get their mean.

        Workers of a tensor group see the same loss, those of a context group that of their tokens;
        in a pipeline one stage sees it.
        """
        return 1.0 / (self.groups.num_replicas * self.config.layout.tensor_parallel)

    def step(self, first_sample: int, sequences: int, progress: float) -> torch.Tensor:
        """Take one step on the samples from a global index on; return this worker's mean loss.

        Args:
            first_sample: Global index of the step's first sample.
            sequences: Samples of the step, over all workers.
            progress: Share of the training done after this step, for the schedule.
        """
        config = self.config
        peak = scaled_learning_rate(config.optimizer, config.batch.sequences_per_step)
        rate = peak * learning_rate_factor(config.schedule, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        for stage in self.local.stages.values():
            stage.train()
        share = sequences // self.groups.num_data
        number = share // config.micro_batch_sequences
        first = first_sample + self.groups.data_rank * share
        pass_size = share if self._pipeline else config.micro_batch_sequences
        self._following = (first + sequences, pass_size) if progress < 1.0 else None
        total = self._accumulate(first, number)
        self._update(number)
        return total / number

    def _accumulate(self, first_sample: int, number: int) -> torch.Tensor:
        """Add up the gradients of this worker's micro-batches; return the sum of their losses."""
        size = self.config.micro_batch_sequences
        if self._pipeline is not None:
            self._seed_dropout(first_sample)
            batch = self._batch((first_sample, number * size), self._following)
            total = self._pipeline.forward_backward(*batch)
            return total / self._scale
        total = torch.zeros((), device=self.workers.device)
        for micro in range(number):
            if self.groups.shards_parameters:
                self.local.whole.set_requires_gradient_sync(micro == number - 1)
            start = first_sample + micro * size
            self._seed_dropout(start)
            is_last = micro == number - 1
            following = self._following if is_last else (start + size, size)
            loss = self._micro_loss((start, size), following)
            (loss * self._scale if self._scale != 1.0 else loss).backward()
            total += loss.detach()
        return total

    @property
    def _scale(self) -> float:
        """What the loss is multiplied with before the backward pass."""
        return 1.0 if self.loss_scale is None else self.loss_scale.value

    def _batch(self, place: Place, following: Place | None) -> Batch:
        """Return the training batch of a place on this worker's device."""
        with self.timers.part("data_wait"):
            if self._prefetcher is None:
                batch = self._read(*place)
            else:
                batch = self._prefetcher.get(place, following)
        return self._on_device(batch)

    def _read(self, first_sample: int, num_sequences: int) -> Batch:
        return self._own_part(self.task.training_batch(first_sample, num_sequences))

    def _own_part(self, batch: Batch) -> Batch:
        """Return this worker's tokens of a batch, ready to be copied to its device."""
        if self._context is not None:
            batch = self._context.own(batch[0], 1), self._context.own(batch[1], 1)
        if self.workers.device.type == "cpu":
            return batch
        return batch[0].pin_memory(), batch[1].pin_memory()

    def _on_device(self, batch: Batch) -> Batch:
        """Return a batch on this worker's device; the host does not wait for the copy."""
        if self.workers.device.type == "cpu":
            return batch
        tokens_BT, targets_BT = (part.to(self.workers.device, non_blocking=True) for part in batch)
        return tokens_BT, targets_BT

    def _micro_loss(self, place: Place, following: Place | None) -> torch.Tensor:
        tokens_BT, targets_BT = self._batch(place, following)
        if self.config.execution.chunked_loss:
            return self.local.whole(tokens_BT, targets_BT)
        return self.task.mean_loss(self.local.whole(tokens_BT), targets_BT)

    def _seed_dropout(self, first_sample: int) -> None:
        """Make dropout a function of the sample, so that a resumed run drops the same."""
        if self.config.model.dropout:
            place = self.groups.rank("pipeline"), self.groups.rank("context")
            seed = hash((self.config.train.seed, first_sample, *place))
            torch.manual_seed(seed & (2**63 - 1))

    def _update(self, number: int) -> None:
        """Bring the gradients together, clip them and take the optimizer's step.

        Args:
            number: Micro-batches whose gradients were added up.
        """
        self._synchronise(number)
        if self._scale_and_clip(number * self._scale):
            with self.timers.part("optimizer"):
                self.optimizer.step()
        self._own_steps += 1
        if self._own_steps >= self.config.layout.local_steps:
            self.average_parameters()
        for _, parameter in self.named:
            parameter.grad = None
        if self._partition is not None:
            self._partition.send_updates()

    def _scale_and_clip(self, divisor: float) -> bool:
        """Divide the summed gradients and clip them; return whether they can be used.

        Only fp16 looks whether they can, because looking makes the host wait for the device.
        """
        limit = self.config.optimizer.gradient_clip_norm
        norm = None
        if limit is not None or self.loss_scale is not None:
            norm = self.gradient_norm = self._gradient_norm() / divisor
        if self.loss_scale is not None:
            overflowed = norm is not None and not bool(torch.isfinite(norm))
            self.loss_scale.after(overflowed=overflowed)
            if overflowed:
                return False
        if limit is not None and norm is not None:
            scale_gradients(self._all, torch.clamp(limit / (norm + 1e-6), max=1.0) / divisor)
        elif divisor != 1.0:
            scale_gradients(self._all, 1.0 / divisor)
        return True

    def _synchronise(self, number: int) -> None:
        """Sum and average gradients over the workers that hold the same parameters."""
        if self._partial:
            sum_gradients(self._partial, self.groups.group("tensor"))
        layout = self.config.layout
        mean: dict[str, Any] = {"dtype": REDUCE_DTYPES[self.config.precision.reduce]}
        if self.groups.shards_parameters:
            # FSDP has averaged over the workers that see other samples.
            if layout.context_parallel > 1:
                mean["divide_by"] = layout.context_parallel
                sum_gradients(self._all, self.groups.group("context"), **mean)
        elif self._compression is not None:
            self._compression.average(number)
        elif self.groups.num_replicas > 1 and layout.local_steps == 1:
            mean["divide_by"] = self.groups.num_replicas
            sum_gradients(self._shared, self.groups.replicas, **mean)
            # Tokens of all workers of an expert group have come to the expert: only its replicas
            # are left to sum over.
            sum_gradients(self._experts, self.groups.group("replicate"), **mean)
        self._tied.add_gradients()

    @torch.no_grad()
    def average_parameters(self) -> None:
        """Give all workers the mean of their parameters where they step on their own; collective.

        Local SGD (Stich, 2019, "Local SGD converges fast and communicates little").
        """
        self._own_steps = 0
        if self.config.layout.local_steps == 1 or self.groups.num_data == 1:
            return
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in self._all])
        sum_in(self.groups.replicas, flat)
        flat /= self.groups.num_data
        pieces = flat.split([parameter.numel() for parameter in self._all])
        for parameter, piece in zip(self._all, pieces, strict=True):
            parameter.copy_(piece.view_as(parameter))

    def _gradient_norm(self) -> torch.Tensor:
        """Return the norm of the summed gradient over all parameters of the whole model."""
        device = self.workers.device
        squares = torch.stack(
            [
                squared_norm(parameters, device)
                for parameters in (self._split, self._experts, self._replicated)
            ]
        )
        if self.groups.shards_parameters:
            sum_in(self.groups.group("shard"), squares)
        sum_in(self.groups.group("tensor"), squares[0])
        sum_in(self.groups.group("expert"), squares[1])
        return sum_in(self.groups.group("pipeline"), squares.sum()).sqrt()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return `val_loss` and the task's other metrics; a collective call."""
        self.average_parameters()
        if self._compression is not None:
            self._compression.share_errors()
        for stage in self.local.stages.values():
            stage.eval()
        sums = torch.zeros(self.task.num_sums, dtype=torch.float64, device=self.workers.device)
        size = self.config.micro_batch_sequences
        for numbers in self.task.validation_numbers(
            self.groups.data_rank, self.groups.num_data, size
        ):
            batch = self._own_part(self.task.validation_batch(numbers))
            tokens_BT, targets_BT = self._on_device(batch)
            logits_BTV = (
                self._pipeline.logits(tokens_BT) if self._pipeline else self.local.whole(tokens_BT)
            )
            if logits_BTV is not None:
                sums += self.task.validation_sums(logits_BTV, targets_BT, numbers)
        return self.task.measures(self.workers.sum(sums).tolist())
