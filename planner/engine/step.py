"""One optimizer step: accumulate micro-batches, average, clip, update; and validation."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from planner.engine.data.windows import Batch, Windows
from planner.engine.models import build_model
from planner.engine.models.initialise import initialise
from planner.engine.optimizers import build_optimizer
from planner.engine.parallel.data import average_gradients
from planner.engine.parallel.workers import Workers
from planner.engine.schedules import learning_rate_factor
from planner.engine.tasks import NextToken
from planner.trial import TrialConfig

__all__ = ["Stepper"]

COMPUTE_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Stepper:
    """Model, optimizer and data of one worker, ready to take steps."""

    def __init__(self, config: TrialConfig, workers: Workers, windows: Windows) -> None:
        self.config, self.workers, self.windows = config, workers, windows
        self.task = NextToken(windows)
        model = build_model(config.model, COMPUTE_DTYPES[config.precision.compute])
        initialise(model, model=config.model, seed=config.train.seed)
        self.model = model.to(workers.device)
        self.optimizer = build_optimizer(config.optimizer, self.model.named_parameters())
        self._parameters = list(self.model.parameters())

    def step(self, first_sample: int, progress: float) -> torch.Tensor:
        """Take one step on the samples from a global index on; return this worker's mean loss.

        Args:
            first_sample: Global index of the step's first sample.
            progress: Share of the training done after this step, for the schedule.
        """
        config = self.config
        rate = config.optimizer.learning_rate * learning_rate_factor(config.schedule, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        total = torch.zeros((), device=self.workers.device)
        number = config.num_micro_batches
        for micro in range(number):
            batch = self._batch(first_sample, micro)
            if config.model.dropout:
                self._seed_dropout(first_sample, micro)
            loss = self.task.training_loss(self.model, batch)
            (loss / number if number > 1 else loss).backward()
            total += loss.detach()
        self._update()
        return total / number

    def _update(self) -> None:
        if self.workers.world_size > 1:
            average_gradients(self._parameters, None, self.workers.world_size)
        limit = self.config.optimizer.gradient_clip_norm
        if limit is not None:
            nn.utils.clip_grad_norm_(self._parameters, limit, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _batch(self, first_sample: int, micro: int) -> Batch:
        """Return a micro-batch: this worker's share is a run of samples, cut into runs."""
        share = self.config.batch.sequences_per_step // self.config.layout.data_shards
        size = self.config.micro_batch_sequences
        start = first_sample + self.workers.rank * share + micro * size
        tokens_BT, targets_BT = self.windows.training(start, size)
        device = self.workers.device
        return tokens_BT.to(device), targets_BT.to(device)

    def _seed_dropout(self, first_sample: int, micro: int) -> None:
        """Make dropout a function of the sample, so that a resumed run drops the same."""
        seed = hash((self.config.train.seed, first_sample, self.workers.rank, micro))
        torch.manual_seed(seed & (2**63 - 1))

    @torch.no_grad()
    def validate(self) -> float:
        """Return the validation loss in nats per token; a collective call."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.workers.device)
        for numbers in self.task.validation_batches(
            self.workers.rank, self.workers.world_size, self.config.micro_batch_sequences
        ):
            sums += self.task.validation_loss(self.model, numbers)
        total, tokens = self.workers.sum(sums).tolist()
        return total / tokens
