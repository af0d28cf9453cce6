"""What runs inside Ray: a trial's first worker as Tune's actor, the others as actors beside it.

The trial's placement group has one bundle per worker: Tune puts its actor into the first, which is
the worker of rank 0, and that starts plain actors in the rest. Both stay warm between trials that
need the same bundles: torch is loaded once. Training runs in a thread, so that the actor answers
while it trains; a trial that is stopped at a report ends its thread, any other end ends the
process, and with it the actors that it owns.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import ray
from ray import tune
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from planner.config import parse_config
from planner.engine.environment import worker_environment
from planner.errors import ConfigError, InfeasibleError
from planner.trial import TrialConfig, TrialResult

__all__ = ["Order", "TrialActor"]

_ALIVE_SECONDS: Final = 1.0
"""Longest time in which the actor says nothing."""
_END_SECONDS: Final = 30.0
"""Time that a trial has to end after it was told to stop at a report."""
_SAME: Final = 1e-9
"""Relative difference below which two amounts of compute are one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Everything that a trial's workers need to know, as it travels."""

    trial: str
    attempt: int
    config: dict[str, Any]
    report_at_flops: tuple[float, ...]
    checkpoint_dir: str
    trainer: str
    """`module:function` with the arguments of `planner.engine.train`."""
    num_workers: int
    device: str
    """`CPU` or `GPU`: the resource that one worker holds."""
    max_silence_seconds: float = 1800.0
    """Longest time between two reports."""

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        """Return the order of a text."""
        data = json.loads(text)
        return cls(**data | {"report_at_flops": tuple(data["report_at_flops"])})

    def train(
        self,
        rank: int,
        init_method: str | None,
        on_metrics: Callable[[dict[str, Any]], bool] | None = None,
    ) -> TrialResult:
        """Train as one worker and return the trial's result."""
        config = parse_config(self.config, TrialConfig, self.trial)
        with _environment(worker_environment(config)):
            module, _, function = self.trainer.partition(":")
            train = getattr(importlib.import_module(module), function)
            result: TrialResult = train(
                config,
                trial=self.trial,
                on_metrics=on_metrics,
                report_at_flops=self.report_at_flops,
                checkpoint_dir=Path(self.checkpoint_dir),
                resume=True,
                rank=rank,
                world_size=self.num_workers,
                init_method=init_method,
            )
        return result


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for one trial, and leave none of its own to the next one in this process."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


class _Worker:
    """A worker of rank 1 or more."""

    def train(self, order: str, rank: int, init_method: str) -> None:
        """Train as one worker of several; rank 0 returns the result."""
        Order.from_json(order).train(rank, init_method)


class TrialActor(tune.Trainable):
    """Tune's actor: the worker of rank 0 of one trial after another."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first trial; it starts when it is first asked for, as this may never be."""
        self._others: list[Any] = []
        self._failed: str | None = None
        self._is_waited_for: bool = False
        self._is_stopped = False
        self._answers: queue.Queue[bool] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._order = str(config["order"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the trial before and take the next one into this process."""
        self._stop()
        if self._thread is not None:
            self._thread.join(_END_SECONDS)
            if self._thread.is_alive() or self._failed:
                os._exit(1)
        self._thread = None
        self._order = str(new_config["order"])
        return True

    def train(self) -> dict[str, Any]:
        """Return the next event alone: Tune's own would copy the configuration with each."""
        self._iteration += 1
        return {"training_iteration": self._iteration, **self.step()}

    def step(self) -> dict[str, Any]:
        """Let the trial go on, and return its next events, or after a while that it is alive."""
        if self._failed:
            raise RuntimeError(self._failed)
        if self._thread is None:
            self._begin(self._order)
        if self._is_waited_for:
            self._is_waited_for = False
            self._answers.put(True)
        events = self._next_events()
        if not events:
            events = [self._other_failed() or self._hung() or {"event": "alive"}]
        else:
            self._heard = time.monotonic()
        last = events[-1]
        self._is_waited_for = bool(last.get("waits"))
        if last["event"] == "failed":
            self._failed = last["reason"]
        return {"payload": json.dumps(events), "done": last["event"] == "end"}

    def _next_events(self) -> list[dict[str, Any]]:
        """Return what the trial has said since the last call, waiting a while for a first word."""
        events: list[dict[str, Any]] = []
        try:
            events.append(self._events.get(timeout=_ALIVE_SECONDS))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            return events

    def cleanup(self) -> None:
        """Let go of the trial; the process ends next, and its thread and actors with it."""
        self._stop()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: the engine writes the checkpoints."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Load nothing: the engine reads the checkpoints."""

    def _begin(self, text: str) -> None:
        order = Order.from_json(text)
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answers = queue.Queue()
        self._is_stopped = False
        # Whether the trial waits at the last report, and calling again means to go on.
        self._is_waited_for = False
        self._failed = None
        self._heard = time.monotonic()
        self._max_silence_seconds = order.max_silence_seconds
        self._rungs = list(order.report_at_flops)
        self._futures: list[Any] = []
        self._thread = threading.Thread(target=self._train, args=(text,), daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        """Let the trial end at its next report."""
        self._is_stopped = True
        self._answers.put(False)

    def _train(self, text: str) -> None:
        """Train in the thread; every way in which it can end becomes an event."""
        event: dict[str, Any]
        try:
            order = Order.from_json(text)
            init_method = self._start_others(order, text) if order.num_workers > 1 else None
            result = order.train(0, init_method, self._on_metrics)
            if self._futures:
                ray.get(self._futures)
            event = {"event": "end", "result": asdict(result) | {"config": {}}}
        except (ConfigError, InfeasibleError) as error:
            event = {"event": "failed", "reason": str(error), "retry": False}
        except BaseException as error:  # the thread must never end without a word
            reason = "".join(traceback.format_exception_only(error)).strip()
            event = {
                "event": "failed",
                "reason": reason,
                "retry": True,
                "traceback": traceback.format_exc(),
            }
        self._events.put(event)

    def _on_metrics(self, metrics: dict[str, Any]) -> bool:
        """Report, and return whether to go on; where a scheduler decides, wait for what it says.

        Elsewhere training does not wait for the driver: a stop is heard a report later.
        """
        flops = float(metrics.get("train_flops") or 0.0)
        waits = bool(self._rungs) and flops >= self._rungs[0] * (1 - _SAME)
        self._rungs = [rung for rung in self._rungs if rung * (1 - _SAME) > flops]
        self._events.put({"event": "report", "metrics": metrics, "waits": waits})
        return self._answers.get() if waits else not self._is_stopped

    def _start_others(self, order: Order, text: str) -> str:
        """Let the other workers train, and return where all of them meet."""
        if not self._others:
            self._others = [_start_worker(order, rank) for rank in range(1, order.num_workers)]
        address = ray.util.get_node_ip_address()
        init_method = f"tcp://{address}:{_free_port(address)}"
        self._futures = [
            worker.train.remote(text, rank, init_method)
            for rank, worker in enumerate(self._others, start=1)
        ]
        return init_method

    def _hung(self) -> dict[str, Any] | None:
        """Return the event of a trial that has been silent for too long, or None."""
        if time.monotonic() - self._heard <= self._max_silence_seconds:
            return None
        reason = f"no report for {self._max_silence_seconds:.0f} s: the trial hangs"
        return {"event": "failed", "reason": reason, "retry": True}

    def _other_failed(self) -> dict[str, Any] | None:
        """Return the event of another worker's death, or None."""
        futures = list(self._futures)
        done = ray.wait(futures, num_returns=len(futures), timeout=0)[0] if futures else []
        for future in done:
            try:
                ray.get(future)
            except ray.exceptions.RayError as error:
                reason = f"a worker of the trial was lost: {str(error).strip().splitlines()[0]}"
                return {"event": "failed", "reason": reason, "retry": True}
        return None


def _start_worker(order: Order, rank: int) -> Any:
    group = ray.util.get_current_placement_group()
    assert group is not None  # noqa: S101 -- Tune starts every trial in one
    return (
        ray.remote(_Worker)
        .options(
            num_cpus=1,
            num_gpus=1 if order.device == "GPU" else 0,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=rank
            ),
        )
        .remote()
    )


def _free_port(address: str) -> int:
    with socket.socket() as found:
        found.bind((address, 0))
        port: int = found.getsockname()[1]
        return port
