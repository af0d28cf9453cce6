"""Starts a trial's other workers beside this process. This module does not load torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from planner.config import parse_config
from planner.engine.environment import worker_environment
from planner.errors import PlannerError
from planner.trial import TrialConfig, TrialResult
from planner.trial.support import check_supported

__all__ = ["train_local"]

_GRACE_SECONDS: Final = 20.0
"""Workers that have not ended by themselves this long after the first one are ended."""


def train_local(
    config: TrialConfig,
    *,
    trial: str = "t000",
    on_metrics: Callable[[dict[str, Any]], bool | None] | None = None,
    report_at_flops: Sequence[float] = (),
    checkpoint_dir: Path | None = None,
    resume: bool = True,
) -> TrialResult:
    """Train with all of the layout's workers on this machine; this process is the first.

    The arguments, the result and the errors are those of `train`. The other workers are processes
    that end with this one.
    """
    check_supported(config)
    os.environ.update({k: v for k, v in worker_environment(config).items() if k not in os.environ})
    world_size = config.layout.num_workers
    if world_size == 1:
        from planner.engine.training import train

        return train(
            config, trial=trial, on_metrics=on_metrics, report_at_flops=report_at_flops,
            checkpoint_dir=checkpoint_dir, resume=resume,
        )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="planner-") as folder:
        init_method = (Path(folder) / "meeting").as_uri()
        order = {
            "config": config.model_dump(mode="json"),
            "trial": trial,
            "report_at_flops": list(report_at_flops),
            "checkpoint_dir": None if checkpoint_dir is None else str(checkpoint_dir),
            "resume": resume,
            "world_size": world_size,
            "init_method": init_method,
        }
        with _other_workers(order, config):
            from planner.engine.training import train  # while the others load torch too

            return train(
                config, trial=trial, on_metrics=on_metrics, report_at_flops=report_at_flops,
                checkpoint_dir=checkpoint_dir, resume=resume, rank=0, world_size=world_size,
                init_method=init_method,
            )  # fmt: skip


@contextmanager
def _other_workers(order: dict[str, Any], config: TrialConfig) -> Iterator[None]:
    """Run ranks 1 and up for the time of the block; none is left behind."""
    environment = os.environ | worker_environment(config)
    command = [sys.executable, "-m", "planner.engine.launch"]
    started: list[subprocess.Popen[str]] = []
    try:
        for rank in range(1, order["world_size"]):
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=sys.stderr, env=environment, text=True
            )
            started.append(worker)
            _send(worker, json.dumps(order | {"rank": rank}))
        yield
        for worker in started:
            _wait(worker)
    finally:
        for worker in started:
            if worker.poll() is None:
                worker.kill()
            worker.wait()


def _send(worker: subprocess.Popen[str], line: str) -> None:
    if worker.stdin is not None:
        with worker.stdin:
            worker.stdin.write(line + "\n")


def _wait(worker: subprocess.Popen[str]) -> None:
    try:
        worker.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        worker.kill()


def _end_with_parent() -> None:
    """Ask Linux to end this process when the one that started it dies."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _work() -> int:
    """Be the worker that the order on standard input describes; return its exit code."""
    _end_with_parent()
    order = json.loads(sys.stdin.readline())
    from planner.engine.training import train

    try:
        train(
            parse_config(order["config"], TrialConfig),
            trial=order["trial"],
            report_at_flops=order["report_at_flops"],
            checkpoint_dir=order["checkpoint_dir"] and Path(order["checkpoint_dir"]),
            resume=order["resume"],
            rank=order["rank"],
            world_size=order["world_size"],
            init_method=order["init_method"],
        )
    except PlannerError as error:
        print(f"error on worker {order['rank']}: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_work())
