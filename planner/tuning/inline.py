"""The inline executor: the engine in this process, one trial after the other. For debugging."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from planner.errors import ConfigError, InfeasibleError
from planner.trial import TrialResult
from planner.tuning.core import Launch
from planner.tuning.driving import Driver
from planner.tuning.records import Decision

__all__ = ["InlineExecutor", "Train"]

Train = Callable[..., TrialResult]
"""A function with the arguments of `planner.engine.train_local`."""


class InlineExecutor:
    """Runs trials here, sequentially; a trial of several workers starts the others beside it.

    Args:
        train: What trains; by default the engine.
    """

    def __init__(self, train: Train | None = None) -> None:
        self._train = train

    def num_devices(self, wanted: int, device: str) -> int:
        """Return the wanted number: the study's cluster is taken at its word."""
        return wanted

    def run(self, driver: Driver) -> None:
        """Run trials until nothing is left or the session must end."""
        train = self._train or _engine()
        while not driver.tick():
            launch = driver.next_launch()
            if launch is None:
                return
            _run_trial(driver, launch, train)

    def close(self) -> None:
        """Nothing is held."""


def _engine() -> Train:
    from planner.engine import train_local

    return train_local


def _run_trial(driver: Driver, launch: Launch, train: Train) -> None:
    sweep, clock = driver.sweep, driver.clock
    held = driver.checkpoints.report(launch.trial)
    sweep.workers_started(launch.trial, clock.now(), float(held.get("train_flops") or 0.0))

    def on_metrics(metrics: dict[str, Any]) -> bool:
        decision = sweep.report(launch.trial, metrics, clock.now())
        return not driver.tick() and decision is Decision.CONTINUE

    if float(held.get("train_flops") or 0.0) > sweep.trials[launch.trial].flops and not on_metrics(
        held
    ):
        return
    try:
        result = train(
            launch.config,
            trial=launch.trial,
            on_metrics=on_metrics,
            report_at_flops=launch.report_at_flops,
            checkpoint_dir=driver.checkpoints.of(launch.trial),
            resume=True,
        )
    except (ConfigError, InfeasibleError) as error:
        sweep.lose(launch.trial, str(error), clock.now(), retry=False)
    except KeyboardInterrupt:
        raise
    except Exception as error:  # any trainer may raise anything: it becomes the trial's state
        reason = "".join(traceback.format_exception_only(error)).strip()
        sweep.lose(launch.trial, reason, clock.now())
    else:
        if driver.interruption.signal is None:
            sweep.end(launch.trial, result, clock.now())
