"""Searches of other packages on tables of learning curves, in simulated time, as lines of JSON.

    PYTHON_OF_PEERS benchmarks/search_peers.py TABLES.npz --seeds 2 [--methods NAME ...]

Run by `search.py`, in its own interpreter and in that of `--peer-python`. Needs nothing of planner:
a file holds `unit_I[rows, parameters]`, the rows' places in the unit box, and `losses_I[rows, points]`.
Each package is driven by its own ask and tell, with its defaults, and told every curve point when the
simulated clock comes to it. Packages that the interpreter lacks are named.
"""

from __future__ import annotations

import argparse
import heapq
import importlib.util
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import numpy as np

REDUCTION = 3
NEEDS = {"Syne Tune": "syne_tune", "SMAC3": "smac", "Ray": "ray", "CARBS": "carbs"}


@dataclass(eq=False, slots=True)
class Run:
    """A trial, which goes on from `num_done` points of its curve."""

    trial: Any
    row: int
    num_done: int = 0


class Peer(Protocol):
    """What the clock asks of a package."""

    def start(self) -> Run | None:
        """Return what a free worker trains."""

    def report(self, run: Run, loss: float) -> bool:
        """Take the loss after `run.num_done` points and return whether it trains on at once."""


@dataclass(slots=True)
class Table:
    """Curves and the places of their configurations."""

    unit: np.ndarray
    losses: np.ndarray

    @property
    def num_points(self) -> int:
        """Points of a whole curve."""
        return self.losses.shape[1]

    def nearest(self, point: Any) -> int:
        """Return the row nearest to a point of the unit box."""
        return int(((self.unit - np.asarray(point, dtype=float)) ** 2).sum(1).argmin())


class SyneTune:
    """A scheduler of Syne Tune's baselines over the box, or over the numbers of the rows."""

    def __init__(self, name: str, table: Table, seed: int, rows: bool) -> None:
        from syne_tune.config_space import randint, uniform
        from syne_tune.optimizer import baselines

        np.random.seed(seed)
        self._table, self._rows, self._count = table, rows, 0
        box = {f"x{j}": uniform(0.0, 1.0) for j in range(table.unit.shape[1])}
        self._scheduler = getattr(baselines, name)(
            {"row": randint(0, len(table.unit) - 1)} if rows else box,
            metric="loss", time_attr="points", max_t=table.num_points, random_seed=seed,
        )  # fmt: skip

    def start(self) -> Run:
        """Start what is suggested; its schedulers pause nothing here."""
        from syne_tune.backend.trial_status import Trial

        config = self._scheduler.suggest().config
        trial = Trial(trial_id=self._count, config=config, creation_time=datetime.now())
        self._count += 1
        self._scheduler.on_trial_add(trial)
        row = config["row"] if self._rows else self._table.nearest(list(config.values()))
        return Run(trial, row)

    def report(self, run: Run, loss: float) -> bool:
        """Tell a loss, a whole curve, or an error."""
        if not np.isfinite(loss):
            self._scheduler.on_trial_error(run.trial)
            return False
        result = {"loss": loss, "points": run.num_done}
        if run.num_done == self._table.num_points:
            self._scheduler.on_trial_complete(run.trial, result)
            return False
        if self._scheduler.on_trial_result(run.trial, result) == "CONTINUE":
            return True
        self._scheduler.on_trial_remove(run.trial)
        return False


class Smac:
    """SMAC3's random forest with Hyperband; a promoted configuration goes on where it was."""

    def __init__(self, table: Table, seed: int) -> None:
        from ConfigSpace import ConfigurationSpace
        from smac import MultiFidelityFacade, Scenario

        self._table, self._runs, self._worst = table, {}, -np.inf
        names = [f"x{j}" for j in range(table.unit.shape[1])]
        self._folder = tempfile.TemporaryDirectory()
        scenario = Scenario(
            ConfigurationSpace(dict.fromkeys(names, (0.0, 1.0)), seed=seed),
            output_directory=self._folder.name, deterministic=True, n_trials=100_000,
            min_budget=1, max_budget=table.num_points, seed=seed,
        )  # fmt: skip
        self._names = names
        self._smac = MultiFidelityFacade(
            scenario, lambda config, seed, budget: 0.0, logging_level=False, overwrite=True
        )

    def start(self) -> Run:
        """Ask for a configuration and a budget in points."""
        info = self._smac.ask()
        row = self._table.nearest([info.config[name] for name in self._names])
        run = self._runs.setdefault(info.config, Run(info, row))
        run.trial = info
        return run

    def report(self, run: Run, loss: float) -> bool:
        """Tell the loss at the budget; divergence as the worst loss that was seen."""
        from smac.runhistory.dataclasses import TrialValue

        if np.isfinite(loss):
            self._worst = max(self._worst, loss)
            if run.num_done < min(round(run.trial.budget), self._table.num_points):
                return True
        elif not np.isfinite(self._worst):
            self._worst = 1e3
        cost = loss if np.isfinite(loss) else self._worst
        self._smac.tell(run.trial, TrialValue(cost=float(cost)), save=False)
        return False


class _Controller:
    """As much of Ray's controller as HyperBandForBOHB looks at.

    It is its own searcher too, one that hears of pauses: OptunaSearch has no `on_pause`, which the
    class calls.
    """

    def __init__(self, peer: HyperBandForBohb) -> None:
        self.search_alg = self.searcher = self
        self._peer = peer

    def get_trials(self) -> list[Any]:
        return self._peer.trials

    def stop_trial(self, trial: Any) -> None:
        self._peer.end(trial, "TERMINATED")

    def on_pause(self, trial_id: str) -> None:
        """Hear of a pause."""

    on_unpause = on_pause


@dataclass(eq=False, slots=True)
class _RayTrial:
    trial_id: str
    run: Run | None = None
    asked: Any = None
    loss: float | None = None
    status: str = "PENDING"
    is_saving: bool = False


class HyperBandForBohb:
    """Ray's HyperBandForBOHB, with random rows or with Optuna's TPE told the last loss."""

    def __init__(self, table: Table, seed: int, tpe: bool) -> None:
        from ray.tune.schedulers import HyperBandForBOHB

        self._table, self._rng, self.trials = table, np.random.default_rng(seed), []
        self._optuna = None
        if tpe:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.ERROR)
            self._optuna = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        self._scheduler = HyperBandForBOHB(
            time_attr="points", metric="loss", mode="min",
            max_t=table.num_points, reduction_factor=REDUCTION,
        )  # fmt: skip
        self._controller = _Controller(self)

    def start(self) -> Run | None:
        """Go on with what the class unpauses, else with a new trial."""
        trial = self._scheduler.choose_trial_to_run(self._controller)
        if trial is None:
            trial = _RayTrial(str(len(self.trials)))
            row = int(self._rng.integers(len(self._table.unit)))
            if self._optuna is not None:
                trial.asked = self._optuna.ask()
                box = range(self._table.unit.shape[1])
                point = [trial.asked.suggest_float(f"x{j}", 0.0, 1.0) for j in box]
                row = self._table.nearest(point)
            trial.run = Run(trial, row)
            self.trials.append(trial)
            self._scheduler.on_trial_add(self._controller, trial)
        trial.status = "RUNNING"
        return trial.run

    def report(self, run: Run, loss: float) -> bool:
        """Tell a loss; a trial that pauses keeps what it has done."""
        trial = run.trial
        if not np.isfinite(loss):
            trial.loss = None
            self.end(trial, "ERROR")
            return False
        trial.loss = loss
        result = {"points": run.num_done, "loss": loss}
        verdict = self._scheduler.on_trial_result(self._controller, trial, result)
        if verdict == "PAUSE":
            trial.status = "PAUSED"
        elif verdict == "STOP" or run.num_done == self._table.num_points:
            self.end(trial, "TERMINATED")
        return bool(trial.status == "RUNNING")

    def end(self, trial: Any, status: str) -> None:
        """End a trial and let the class and the sampler know."""
        trial.status = status
        self._scheduler.on_trial_remove(self._controller, trial)
        if self._optuna is not None:
            import optuna

            failed = optuna.trial.TrialState.FAIL if trial.loss is None else None
            self._optuna.tell(trial.asked, trial.loss, state=failed)


def trace(peer: Peer, table: Table, arguments: Any) -> list[float]:
    """Return the best loss so far at 40 shares of the compute."""
    step, seconds = arguments.seconds_per_point, arguments.hours * 3600.0
    shares = np.linspace(0.025, 1.0, 40)
    events: list[tuple[float, int, Run]] = []
    best, now, count, free = np.full(40, np.inf), 0.0, 0, arguments.workers
    while True:
        while free and (run := peer.start()) is not None:
            free, count = free - 1, count + 1
            heapq.heappush(events, (now + step, count, run))
        if not events or events[0][0] > seconds:
            return best.tolist()
        now, _, run = heapq.heappop(events)
        run.num_done += 1
        # A configuration asked for again after its whole curve says its last loss once more.
        loss = float(table.losses[run.row, min(run.num_done, table.num_points) - 1])
        if np.isfinite(loss):
            seen = shares * seconds + 1e-6 >= now
            best[seen] = np.minimum(best[seen], loss)
        if peer.report(run, loss):
            count += 1
            heapq.heappush(events, (now + step, count, run))
        else:
            free += 1


def methods() -> dict[str, tuple[str, Callable[[Table, int], Peer]]]:
    """Return what is compared: name -> (package, what makes it for a table and a seed)."""
    return {
        "Ray HyperBandForBOHB": ("Ray", lambda t, s: HyperBandForBohb(t, s, False)),
        "Ray HyperBandForBOHB + TPE": ("Ray", lambda t, s: HyperBandForBohb(t, s, True)),
        "Syne Tune ASHA": ("Syne Tune", lambda t, s: SyneTune("ASHA", t, s, True)),
        "SMAC3 Hyperband": ("SMAC3", Smac),
        "Syne Tune BOHB": ("Syne Tune", lambda t, s: SyneTune("BOHB", t, s, False)),
    }


def main() -> None:
    """Print a line per method and table, and one that names the packages that are absent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds-per-point", type=float, default=60.0)
    parser.add_argument("--methods", nargs="*")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    absent = [name for name, module in NEEDS.items() if importlib.util.find_spec(module) is None]
    print(json.dumps({"absent": absent}), flush=True)
    data = np.load(arguments.tables)
    for name, (package, make) in methods().items():
        if package in absent or (arguments.methods and name not in arguments.methods):
            continue
        for number in range(len(data.files) // 2):
            table = Table(data[f"unit_{number}"], data[f"losses_{number}"])
            start = time.process_time()
            traces = [trace(make(table, s), table, arguments) for s in range(arguments.seeds)]
            spent = (time.process_time() - start) / arguments.seeds
            line = {"method": name, "table": number, "best": traces, "cpu_seconds": spent}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
