"""Searchers x schedulers on tables of learning curves in simulated time: regret against compute.

    python benchmarks/search.py --table learning_curve_tables.npz [--grid lr_batch_grid.csv]

A table file holds `hp[tasks, rows, parameters]`, `hp_names`, `valid[tasks, rows, points]`, `test` (as
`valid`) and `tasks`. Regret is the best validation loss seen so far less the best of the table.
Every method drives the same core and sees the same clock: 8 workers, 60 s per curve point. Whole
systems (Ray's HyperBandForBOHB, Syne Tune, SMAC3) are driven by `search_peers.py` with the same clock;
`--peer-python PYTHON` names an interpreter in which they are installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import search_cases as cases
from arguments import table_file

from planner.errors import ConfigError, PlannerError
from planner.study import SchedulerConfig, SearchConfig, Study
from planner.trial import TrialState
from planner.tuning.asking import OptunaSearcher
from planner.tuning.bohb import BohbSearcher
from planner.tuning.cost_aware import CostAwareSearcher
from planner.tuning.schedulers import NoScheduler, Scheduler, make_scheduler
from planner.tuning.searchers import Outcome, Proposals, Searcher
from planner.tuning.simulated import simulate
from planner.tuning.tables import CurveTable

SHARES = np.linspace(0.025, 1.0, 40)
SHOWN = (0.25, 0.5, 0.7, 1.0)
NEVER = 1.5
"""Share of the compute entered for a run that never got there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A searcher and a scheduler."""

    name: str
    searcher: Callable[[Study, CurveTable], Searcher]
    scheduler: Callable[[CurveTable], Scheduler]
    rows: bool
    """Whether it chooses among the rows; otherwise in the box around them, nearest row taken."""


def scheduler(name: str) -> Callable[[CurveTable], Scheduler]:
    """Return what makes one of our schedulers for a table."""

    def make(table: CurveTable) -> Scheduler:
        grace = 1.0 / table.num_points
        if name == "octaves":
            grace = min(1.0, 2.0 / table.num_points)
        return make_scheduler(SchedulerConfig(name=name, grace_fraction=grace))

    return make


def process(study: Study, table: CurveTable) -> Searcher:
    """Return Optuna's Gaussian process, however many trials there will be."""
    search = study.search.model_copy(update={"algorithm": "bayesian", "sampler": "gp"})
    return OptunaSearcher(study.model_copy(update={"search": search}))


def methods() -> list[Method]:
    """Return everything that is compared."""
    random = lambda study, table: Proposals(study)  # noqa: E731
    optuna = lambda study, table: OptunaSearcher(study)  # noqa: E731
    stock = lambda study, table: cases.StockTpe(study)  # noqa: E731
    aware = lambda study, table: CostAwareSearcher(study, price=table.price)  # noqa: E731
    bohb = lambda study, table: BohbSearcher(study)  # noqa: E731
    none = lambda table: NoScheduler()  # noqa: E731
    ray = lambda table: cases.StockAsha(table.num_points)  # noqa: E731
    rows = [
        ("random", random, none, True),
        ("random + asha", random, scheduler("asha"), True),
        ("random + octaves", random, scheduler("octaves"), True),
        ("random + hyperband", random, scheduler("hyperband"), True),
        ("random + median", random, scheduler("median"), True),
        ("random + stock Ray ASHA", random, ray, True),
        ("stock Optuna TPE", stock, none, False),
        ("stock Optuna TPE + asha", stock, scheduler("asha"), False),
        ("bayesian", optuna, none, False),
        ("bayesian, gp", process, none, False),
        ("bayesian + octaves", optuna, scheduler("octaves"), False),
        ("bayesian + hyperband", optuna, scheduler("hyperband"), False),
        ("bayesian + bohb", bohb, scheduler("bohb"), False),
        ("cost_aware", aware, none, True),
        ("cost_aware + asha", aware, scheduler("asha"), True),
        ("cost_aware + octaves", aware, scheduler("octaves"), True),
        ("cost_aware + octaves, box", aware, scheduler("octaves"), False),
    ]
    return [Method(name=n, searcher=s, scheduler=c, rows=r) for n, s, c, r in rows]


def trace(table: CurveTable, method: Method, seed: int, hours: float, workers: int) -> Any:
    """Return the best validation loss so far [40] at shares of the compute, and its row's index."""
    search = SearchConfig(algorithm="random", num_trials=1_000_000, seed=seed)
    seconds = hours * 3600.0
    # Trials are started to the end: the budget lies beyond what is looked at.
    longest = table.num_points * table.seconds_per_point
    study = table.study(
        search, seconds=seconds + 2 * longest, num_workers=workers, rows=method.rows
    )
    sweep = simulate(
        study,
        table,
        searcher=method.searcher(study, table),
        scheduler=method.scheduler(table),
        until_seconds=seconds,
    )
    times = np.array([line["t"] for line in sweep.reports])
    losses = np.array([line["metrics"]["val_loss"] for line in sweep.reports], dtype=float)
    best = np.minimum.accumulate(np.where(np.isfinite(losses), losses, np.inf))
    index = np.searchsorted(times, SHARES * seconds + 1e-6, side="right") - 1
    return np.where(index >= 0, best[np.maximum(index, 0)], np.inf)


def compare(tables: Sequence[CurveTable], chosen: Sequence[Method], arguments: Any) -> None:
    """Print the regrets, and how soon each method has what the better baseline has at the end."""
    regrets: dict[str, np.ndarray] = {}
    print(f"mean regret over {arguments.seeds} seeds at shares of "
          f"{arguments.hours:g} h x {arguments.workers} workers")  # fmt: skip
    print(
        "table method                     " + "".join(f"{share:9.0%}" for share in SHOWN), " CPU s"
    )
    for method in chosen:
        per_table = []
        for number, table in enumerate(tables):
            start = time.process_time()
            best = np.nanmin(np.where(np.isfinite(table.losses), table.losses, np.nan))
            runs = [
                trace(table, method, seed, arguments.hours, arguments.workers) - best
                for seed in range(arguments.seeds)
            ]
            per_table.append(np.array(runs))
            seconds = (time.process_time() - start) / arguments.seeds
            show(number, method.name, per_table[-1], seconds)
        regrets[method.name] = np.array(per_table)
    for number, name, losses, seconds in peers(tables, arguments):
        runs_of = losses - np.nanmin(tables[number].losses)
        regrets[name] = np.concatenate([regrets.get(name, np.empty((0, *losses.shape))), [runs_of]])
        show(number, name, runs_of, seconds)
    summarise(regrets)


def show(number: int, name: str, regrets: np.ndarray, seconds: float) -> None:
    """Print regrets [seeds, 40] of one method on one table."""
    columns = [int(np.argmin(abs(SHARES - share))) for share in SHOWN]
    print(f"{number:5d} {name:26s}" + "".join(f"{r:9.4f}" for r in regrets[:, columns].mean(0))
          + f"{seconds:7.2f}", flush=True)  # fmt: skip


def unit_places(table: CurveTable) -> np.ndarray:
    """Return the rows' places in the unit box [R, P], in logarithms where the box is drawn so."""
    places = []
    for name, each in table.space(rows=False).parameters.items():
        scale = np.log if each.is_log else np.asarray
        low, high = scale((each.low, each.high))
        places.append((scale(table.values[:, table.names.index(name)]) - low) / (high - low))
    return np.stack(places, axis=1)


def peers(
    tables: Sequence[CurveTable], arguments: Any
) -> Iterator[tuple[int, str, np.ndarray, float]]:
    """Yield (table, method, best losses [seeds, 40], CPU seconds per run) of other packages."""
    options = [f"--{n}={getattr(arguments, n)}" for n in ("seeds", "hours", "workers")]
    options.append(f"--seconds-per-point={arguments.seconds_per_point}")
    if arguments.methods:
        options += ["--methods", *arguments.methods]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    absent: list[set[str]] = []
    said: set[tuple[str, int]] = set()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tables.npz"
        places = {f"unit_{i}": unit_places(t) for i, t in enumerate(tables)}
        np.savez(path, **places, **{f"losses_{i}": t.losses for i, t in enumerate(tables)})  # type: ignore[arg-type]
        script = Path(__file__).with_name("search_peers.py")
        for python in dict.fromkeys([sys.executable, arguments.peer_python]):
            command = [python, str(script), str(path), *options]
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env=environment
            ) as running:
                for line in map(json.loads, running.stdout or ()):
                    if "absent" in line:
                        absent.append(set(line["absent"]))
                    elif (key := (line["method"], line["table"])) not in said:
                        said.add(key)
                        best = np.array(line["best"])
                        yield line["table"], line["method"], best, line["cpu_seconds"]
            if running.returncode:
                print(f"{python} ended with {running.returncode}: its peers are not complete")
    print(f"peers not installed: {', '.join(sorted(set.intersection(*absent))) or 'none'}")


def summarise(regrets: dict[str, np.ndarray]) -> None:
    """Print each method against the better of random + asha and stock TPE, table by table."""
    bases = [name for name in ("random + asha", "stock Optuna TPE") if name in regrets]
    if not bases:
        return
    ends = np.stack([regrets[name][:, :, -1].mean(1) for name in bases])
    target = ends.min(0)
    noise = np.stack([regrets[name][:, :, -1].std(1) for name in bases]).min(0)
    print(f"\nagainst the better of {' and '.join(bases)} at the end, per table")
    print("method                    share of its compute: median  mean | worst excess regret "
          "(in seed standard deviations)")  # fmt: skip
    for name, runs in regrets.items():
        there = runs <= target[:, None, None] + 1e-9
        share = np.where(there.any(2), SHARES[there.argmax(2)], NEVER)
        excess = runs[:, :, -1].mean(1) - target
        worst = int(np.argmax(excess))
        print(f"{name:28s} {np.median(share):22.3f} {share.mean():6.3f} | {excess[worst]:+.4f} "
              f"({excess[worst] / max(noise[worst], 1e-9):+.2f})")  # fmt: skip


def grid(path: Path, seeds: int) -> None:
    """Print the mean regret in percent on the cells of a learning-rate and batch grid."""
    results: dict[str, list[np.ndarray]] = {
        "cost_aware": [],
        "cost_aware, no law": [],
        "stock Optuna TPE": [],
    }
    for num_params, tokens, cell in cases.grid_cells(path):
        price, best = cases.grid_price(cell, num_params, tokens), min(cell.values())
        for seed in range(seeds):
            study = cases.grid_study(cell, seed)
            for name, searcher in (
                ("cost_aware", CostAwareSearcher(study, price=price)),
                ("cost_aware, no law", CostAwareSearcher(study, price=price, use_law=False)),
                ("stock Optuna TPE", cases.StockTpe(study)),
            ):
                losses = cases.ask_tell(searcher, cases.looked_up(cell), 30)
                found = np.minimum.accumulate(np.array(losses, dtype=float))
                found = np.pad(found, (0, 30 - len(found)), mode="edge")
                results[name].append((found / best - 1) * 100)
    print("\nlearning rate x batch: mean regret in percent after 1, 10, 20, 30 trials")
    for name, runs in results.items():
        mean = np.mean(runs, axis=0)
        print(f"{name:24s}" + "".join(f"{mean[n - 1]:9.3f}" for n in (1, 10, 20, 30)))


def smooth(seeds: int) -> None:
    """Print the mean regret on smooth functions of two intervals, with noise of 0.005."""
    print("\nsmooth functions of two intervals: mean regret after 10, 20, 30, 40 trials")
    for sampler in ("tpe", "gp"):
        runs = []
        for seed in range(seeds):
            study, value = cases.smooth_case(seed)
            search = study.search.model_copy(
                update={"algorithm": "bayesian", "sampler": sampler, "num_trials": 40}
            )
            searcher = OptunaSearcher(study.model_copy(update={"search": search}))
            noise, true = np.random.default_rng(seed), []

            def evaluate(
                point: Any, value: Any = value, noise: Any = noise, true: Any = true
            ) -> float:
                true.append(value(point))
                return float(3.0 + true[-1] + noise.normal(0.0, 0.005))

            cases.ask_tell(searcher, evaluate, 40)
            runs.append(np.minimum.accumulate(true))
        mean = np.mean(runs, axis=0)
        print(f"bayesian, {sampler:14s}" + "".join(f"{mean[n - 1]:9.4f}" for n in (10, 20, 30, 40)))


def layouts(seeds: int) -> None:
    """Print how many trials a space wastes of which 57 % run out of memory."""
    limit = cases.layout_limit()
    best = min(
        cases.layout_slowness(p) for p in cases.layout_points() if cases.layout_memory(p) <= limit
    )

    def evaluate(point: Any) -> float | None:
        return None if cases.layout_memory(point) > limit else cases.layout_slowness(point)

    print("\nlayouts: share of trials 21-60 out of memory, regret in percent after 60")
    for name, make in (
        ("cost_aware", lambda s: CostAwareSearcher(s, price=cases.free_price)),
        ("stock Optuna TPE", cases.StockTpe),
    ):
        wasted, regret = [], []
        for seed in range(seeds):
            losses = cases.ask_tell(make(cases.layout_study(seed)), evaluate, 60)
            wasted.append(np.mean([loss is None for loss in losses[20:]]))
            regret.append(min(loss for loss in losses if loss is not None) / best - 1)
        print(
            f"{name:24s} {np.mean(wasted):7.1%} (worst seed {max(wasted):.1%}) {np.mean(regret):9.2%}"
        )


def speed(table: CurveTable) -> None:
    """Print seconds per suggestion at 1,000 finished trials, and results per second with ASHA."""
    print("\nmilliseconds per suggestion with 1,000 finished trials (CPU time)")
    study = table.study(SearchConfig(algorithm="random", num_trials=1, seed=0), seconds=1.0,
                        num_workers=1, rows=False)  # fmt: skip
    losses = np.where(np.isfinite(table.losses[:, -1]), table.losses[:, -1], 1e3)
    for name, searcher in (
        ("cost_aware", CostAwareSearcher(study, price=table.price)),
        ("stock Optuna TPE", cases.StockTpe(study)),
    ):
        spent = 0.0
        for number in range(1040):
            start = time.process_time()
            point = searcher.propose(f"t{number}")
            loss = float(losses[table.row_of(point)])
            outcome = Outcome(state=TrialState.COMPLETED, loss=loss, fidelity=1.0)
            searcher.end(f"t{number}", outcome)
            spent += time.process_time() - start if number >= 1000 else 0.0
        print(f"{name:24s} {spent / 40 * 1e3:9.2f}")
    for name in ("none", "asha", "octaves"):
        study = table.study(SearchConfig(algorithm="random", num_trials=10**6, seed=0),
                            seconds=1e9, num_workers=8, rows=True)  # fmt: skip
        start = time.process_time()
        sweep = simulate(study, table, scheduler=scheduler(name)(table), until_seconds=40 * 3600.0)
        rate = len(sweep.reports) / (time.process_time() - start)
        print(f"simulator, random + {name:8s} {rate:9.0f} results/s ({len(sweep.trials)} trials)")


def as_numbers(column: np.ndarray) -> np.ndarray:
    """Return a parameter's values as numbers; names are numbered in their order."""
    try:
        return column.astype(float)
    except ValueError:
        return np.unique(column, return_inverse=True)[1].astype(float)


def load(path: Path, seconds_per_point: float) -> list[CurveTable]:
    """Return the tables of a file.

    Raises:
        ConfigError: The file cannot be read, lacks an array, or holds a table without a result.
    """
    try:
        with np.load(path) as data:
            names = [str(name) for name in data["hp_names"]]
            hp, valid = data["hp"], data["valid"]
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} must hold hp, hp_names and valid: {error}") from error
    if hp.ndim != 3 or valid.ndim != 3 or len(hp) != len(valid):
        raise ConfigError(
            "a file needs hp[tasks, rows, parameters] and valid[tasks, rows, points]: got "
            f"{hp.shape} and {valid.shape}."
        )
    tables = []
    for values, losses in zip(hp, valid, strict=True):
        columns = [as_numbers(column) for column in values.T]
        tables.append(CurveTable(names, np.stack(columns, axis=1), losses, seconds_per_point))
    return tables


def main() -> None:
    """Run what the options ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--table", type=table_file, help="file with tables of learning curves")
    parser.add_argument(
        "--grid", type=table_file, help="file with losses of learning rates x batches"
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds-per-point", type=float, default=60.0)
    parser.add_argument("--methods", nargs="*", help="names of methods; by default all")
    parser.add_argument("--peer-python", default=sys.executable, help="where peers are installed")
    arguments = parser.parse_args()
    tables = load(arguments.table, arguments.seconds_per_point) if arguments.table else []
    layouts(arguments.seeds)
    smooth(arguments.seeds)
    if arguments.grid:
        grid(arguments.grid, arguments.seeds)
    if not tables:
        print("\n--table FILE is missing: no learning curves")
        return
    wanted = arguments.methods
    compare(tables, [m for m in methods() if not wanted or m.name in wanted], arguments)
    speed(tables[0])


if __name__ == "__main__":
    try:
        main()
    except PlannerError as error:
        raise SystemExit(f"error: {error}") from error
