"""The Ray executor: Ray Tune runs what the core decides. Loading this module loads ray.

Tune's searcher and scheduler are thin adapters of the core, which knows more than Tune's own could:
they keep no state, and Tune's saved state is never read. One trial of Tune is one attempt of ours.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

from planner.errors import InfeasibleError
from planner.trial import TrialResult, TrialState
from planner.tuning.core import Launch
from planner.tuning.driving import Driver
from planner.tuning.records import Decision

_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # relative paths and start-up time suffer from it
    "RAY_AIR_NEW_OUTPUT": "0",  # its banner cannot be silenced
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",  # Ray starts workers at 15, and slow trials cost budget
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger is the log
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are the driver's business
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # events are no metrics
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # the ledger is the state
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "600",
}
"""Set before ray is loaded, unless the user has set them."""

for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402 -- the environment above is read when ray is loaded
from ray import tune  # noqa: E402
from ray.tune.schedulers import TrialScheduler  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

from planner.tuning.ray_cluster import ClusterWatch, connect  # noqa: E402
from planner.tuning.trainable import Order, TrialActor  # noqa: E402
from planner.tuning.tune_internals import next_without_workers  # noqa: E402

__all__ = ["RayExecutor"]


class RayExecutor:
    """Runs trials on a Ray cluster: the one at an address, or one of this machine's own.

    Args:
        address: Of a running cluster; None starts Ray here for the time of the run, unless this
            process is connected already or `$RAY_ADDRESS` names a cluster.
        trainer: `module:function` that trains.
    """

    def __init__(self, address: str | None = None, trainer: str = "planner.engine:train") -> None:
        self._address = address
        self._trainer = trainer
        self._is_ours = False

    def num_devices(self, wanted: int, device: str = "CPU") -> int:
        """Connect, and return how many of the wanted devices the cluster has.

        Raises:
            ClusterUnreachableError: No cluster answers at the address.
            InfeasibleError: The cluster has no device of that kind.
        """
        self._device = device
        if not ray.is_initialized():
            address = self._address or os.environ.get("RAY_ADDRESS")
            connect(address, wanted if device == "CPU" else None)
            self._is_ours = True
        there = int(ray.cluster_resources().get(device, 0))
        if there < 1:
            raise InfeasibleError(
                f"the study needs {device} devices: the Ray cluster has none.",
                hint="Set cluster.device in the study to what the cluster has.",
            )
        return min(wanted, there)

    def run(self, driver: Driver) -> None:
        """Let Tune run until nothing is left or the session must end."""
        with ClusterWatch(driver.folder.name, self._device) as watch:
            self._run(driver, watch)

    def _run(self, driver: Driver, watch: ClusterWatch) -> None:
        desk = _Desk(driver, watch, self._trainer, self._device)
        driver.folder.tune.mkdir(parents=True, exist_ok=True)
        tuner = tune.Tuner(
            tune.with_resources(TrialActor, _bundles),
            tune_config=tune.TuneConfig(
                search_alg=_TuneSearcher(desk),
                scheduler=_TuneScheduler(desk),
                num_samples=-1,
                max_concurrent_trials=driver.sweep.num_devices,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.config["name"],
            ),
            run_config=tune.RunConfig(
                name="sessions",
                storage_path=str(driver.folder.tune),
                stop=_TuneStopper(desk),
                # A save at a trial's end would delay its workers' release after the core counts on it.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[_TuneCallback(desk)],
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        )
        tuner.fit()

    def close(self) -> None:
        """Leave the cluster; a cluster that was started here ends."""
        if self._is_ours:
            ray.shutdown()


def _bundles(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Return one bundle per worker."""
    order = Order.from_json(config["order"])
    bundle = {"CPU": 1.0} | ({"GPU": 1.0} if order.device == "GPU" else {})
    return tune.PlacementGroupFactory([bundle] * order.num_workers, strategy="PACK")


class _Desk:
    """Joins Tune's trials to the core's."""

    def __init__(self, driver: Driver, watch: ClusterWatch, trainer: str, device: str) -> None:
        self.driver, self._watch = driver, watch
        self._trainer, self._device = trainer, device

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune saves its adapters, and the ledger is the state."""
        return {}

    def take(self) -> dict[str, Any] | None:
        """Return the configuration of Tune's next trial, or None."""
        launch = self.driver.next_launch()
        if launch is None:
            return None
        name = f"{launch.trial}-{launch.attempt}"
        return {"name": name, "order": self._order(launch).to_json()}

    def _order(self, launch: Launch) -> Order:
        return Order(
            trial=launch.trial,
            attempt=launch.attempt,
            config=launch.config.model_dump(mode="json"),
            report_at_flops=launch.report_at_flops,
            checkpoint_dir=str(self.driver.checkpoints.of(launch.trial)),
            trainer=self._trainer,
            num_workers=launch.config.layout.num_workers,
            device=self._device,
            max_silence_seconds=self.driver.sweep.study.search.max_silence_seconds,
        )

    def tick(self) -> bool:
        """Let time pass; return whether the session must end now."""
        error = self._watch.error()
        if error is not None and self.driver.lost is None:
            self.driver.lose_cluster(error)
        return self.driver.tick()

    @property
    def is_over(self) -> bool:
        """Whether nothing runs and nothing will be started."""
        return self.driver.sweep.is_over(self.driver.clock.now())

    def is_current(self, name: str) -> bool:
        """Return whether Tune's trial is the attempt that the core thinks is running."""
        trial, _, attempt = name.rpartition("-")
        record = self.driver.sweep.trials[trial]
        return record.is_running and len(record.attempts) == int(attempt)

    def started(self, name: str) -> None:
        """Hear that the workers are up."""
        if not self.is_current(name):
            return
        trial = name.rpartition("-")[0]
        sweep, clock = self.driver.sweep, self.driver.clock
        held = self.driver.checkpoints.report(trial)
        flops = float(held.get("train_flops") or 0.0)
        sweep.workers_started(trial, clock.now(), flops)
        if flops > sweep.trials[trial].flops:
            sweep.report(trial, held, clock.now())

    def heard_all(self, name: str, payload: str) -> bool:
        """Hear what a trial has said since it was last asked; return whether it goes on."""
        return all(self.heard(name, event) for event in json.loads(payload))

    def heard(self, name: str, event: dict[str, Any]) -> bool:
        """Hear what a trial says; return whether it goes on."""
        if not self.is_current(name):
            return False
        trial = name.rpartition("-")[0]
        sweep, now = self.driver.sweep, self.driver.clock.now()
        if event["event"] == "report":
            return sweep.report(trial, event["metrics"], now) is Decision.CONTINUE
        if event["event"] == "end":
            result = event["result"]
            state = TrialState(result["state"])
            sweep.end(trial, TrialResult(**result | {"state": state}), now)
        if event["event"] == "failed":
            sweep.lose(trial, event["reason"], now, retry=event["retry"])
        return True

    def lost(self, name: str, reason: str) -> None:
        """Hear that a trial's first worker died."""
        if self.is_current(name):
            trial = name.rpartition("-")[0]
            self.driver.sweep.lose(trial, reason, self.driver.clock.now())


class _TuneSearcher(Searcher):
    """Hands the core's launches to Tune."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__()
        self._desk = desk

    def suggest(self, trial_id: str) -> Any:
        """Return the next launch, None for not now, or FINISHED."""
        config = self._desk.take()
        if config is not None:
            return config
        return Searcher.FINISHED if self._desk.is_over else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Hear nothing: the scheduler does."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the ledger is the state."""


class _TuneScheduler(TrialScheduler):
    """Takes what trials say to the core, and its answers to Tune."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__()
        self._desk = desk
        self._pending: list[Any] = []

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Remember it: it has no workers yet."""
        self._pending.append(trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return what the core says to the trial's events."""
        goes_on = self._desk.heard_all(trial.config["name"], result["payload"])
        return self.CONTINUE if goes_on else self.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take the last events of a trial that ended by itself to the core."""
        if result.get("done") and result.get("payload"):
            self._desk.heard_all(trial.config["name"], result["payload"])

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Tell the core that an attempt died."""
        error = trial.get_pickled_error()
        lines = str(error).strip().splitlines() if error else []
        reason = f"the trial's process was lost: {lines[0]}" if lines else "the process was lost"
        self._desk.lost(trial.config["name"], reason)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Nothing: it never started."""

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return the first trial without workers; the core has seen to it that it fits.

        A trial whose own workers are starting keeps them: with warm ones, the others would be
        thrown away half started, and the next trial would start the same anew.
        """
        self._pending = [trial for trial in self._pending if trial.status == trial.PENDING]
        return next_without_workers(tune_controller, self._pending)

    def debug_string(self) -> str:
        """Return who decides."""
        return "decided by planner"

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the ledger is the state."""


class _TuneStopper(tune.Stopper):
    """Lets the core's time pass at every turn of Tune's loop."""

    def __init__(self, desk: _Desk) -> None:
        self._desk = desk

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: trials are stopped by the scheduler."""
        return False

    def stop_all(self) -> bool:
        """Return whether the session must end now."""
        return self._desk.tick()


class _TuneCallback(tune.Callback):
    """Hears when a trial's workers are up."""

    def __init__(self, desk: _Desk) -> None:
        self._desk = desk

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Charge the trial from here on."""
        self._desk.started(trial.config["name"])
