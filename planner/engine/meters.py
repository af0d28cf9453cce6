"""What a trial costs while it trains: the columns of its row that are measured."""

from __future__ import annotations

from typing import Any

import torch

from planner.costs.flops import train_flops_per_token
from planner.costs.params import count_params
from planner.engine.measurement import Clock, peak_flops_per_second, peak_memory_bytes
from planner.engine.parallel.workers import Workers
from planner.engine.power import PowerMeter
from planner.engine.timers import PARTS, Timers
from planner.trial import TrialConfig

__all__ = ["Meters"]


class Meters:
    """Clock, timers and power of one worker, and what they say of all of them."""

    def __init__(self, config: TrialConfig, workers: Workers) -> None:
        self._config, self._workers = config, workers
        self.clock = Clock(workers.device)
        self.timers = Timers(workers.device)
        self._power = PowerMeter(workers.device, config.execution.threads_per_worker)

    @property
    def hides_communication(self) -> bool:
        """Whether communication runs beside computation where nobody can see how much it delays."""
        layout = self._config.layout
        sharded = layout.shard_parallel > 1 and layout.zero_stage > 1
        return self._workers.device.type == "cuda" and sharded

    def counted(self, step: int, sequences: int) -> dict[str, Any]:
        """Return what follows from the number of steps and sequences, and the clock."""
        model = self._config.model
        params = count_params(model)
        tokens = sequences * model.sequence_length
        return {
            "num_params": params.total,
            "num_params_non_embedding": params.non_embedding,
            "num_steps": step,
            "train_tokens": tokens,
            "train_flops": tokens * train_flops_per_token(model),
            "train_seconds": self.clock.train_seconds,
            "elapsed_seconds": self.clock.elapsed_seconds,
        }

    def measured(self, step: int, sequences: int) -> dict[str, Any]:
        """Return what is known of the trial's cost at this moment; a collective call."""
        peak_bytes = torch.tensor([peak_memory_bytes(self._workers.device)], dtype=torch.float64)
        power, seconds = self._power.power(), self.timers.seconds()
        values = [*(seconds[part] for part in PARTS), power.utilisation, power.watts]
        means = self._means(values)
        data_wait, communication, optimizer, utilisation, watts = means
        return self.counted(step, sequences) | {
            "tokens_per_second": self.clock.tokens_per_second,
            "mfu": self._mfu(),
            "peak_memory_bytes": float(self._workers.largest(peak_bytes)),
            "data_wait_seconds": data_wait,
            "communication_seconds": None if self.hides_communication else communication,
            "optimizer_seconds": optimizer,
            "compile_seconds": (
                self.clock.compile_seconds if self._config.execution.compile else None
            ),
            "utilisation_fraction": utilisation,
            "power_watts": watts,
            "energy_source": power.source,
        }

    def _means(self, values: list[float | None]) -> list[float | None]:
        """Return the mean over the workers that know each value, None where none does."""
        known = [value is not None for value in values]
        sums = torch.tensor([[v or 0.0 for v in values], known], dtype=torch.float64)
        totals, numbers = self._workers.sum(sums).tolist()
        return [t / n if n else None for t, n in zip(totals, numbers, strict=True)]

    def _mfu(self) -> float | None:
        """Model FLOPs utilisation: 6N + attention FLOPs per second over the workers' peak."""
        rate = self.clock.tokens_per_second
        peak = peak_flops_per_second(self._config, self._workers.device)
        if rate is None or peak is None or self._config.precision.emulate != "none":
            return None
        flops = train_flops_per_token(self._config.model)
        return rate * flops / (peak * self._workers.world_size)

    def close(self) -> None:
        """Stop measuring."""
        self._power.close()
