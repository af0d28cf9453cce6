"""`sweep` and `resume`: one session of a run, from its folder to its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from planner.budget import Budget
from planner.costs import Cluster, resolve_cluster
from planner.errors import ConfigError, InfeasibleError, TrialError
from planner.planning import plan
from planner.results import Results
from planner.run_folder import RunFolder
from planner.study import Study
from planner.trial import TrialState
from planner.tuning.core import Sweep
from planner.tuning.driving import Driver, Executor, Interruption, StudyClock
from planner.tuning.ledger import Ledger, Line, recover
from planner.tuning.lock import locked
from planner.tuning.outcome import OnEvent, progress_of, results_of
from planner.tuning.search_summary import summarise
from planner.tuning.searchers import make_searcher
from planner.tuning.warm_start import gather_earlier, keep_earlier, kept_earlier

__all__ = ["ExecutorName", "SweepInterrupted", "resume", "sweep"]

ExecutorName = Literal["ray", "inline"]


class SweepInterrupted(KeyboardInterrupt):
    """A signal ended the session; the run can be resumed.

    Args:
        name: Name of the run.
        exit_code: What the command line returns: 130 or 143.
    """

    def __init__(self, name: str, exit_code: int) -> None:
        super().__init__(f"run {name!r} was interrupted")
        self.name = name
        self.exit_code = exit_code


def sweep(
    study: Study,
    *,
    executor: ExecutorName | Executor = "ray",
    name: str | None = None,
    root: Path | None = None,
    address: str | None = None,
    on_event: OnEvent | None = None,
) -> Results:
    """Run the trials of a study and return their results.

    Args:
        study: What to run.
        executor: `ray`, or `inline` (the engine in this process, one trial after the other).
        name: Name of the run; by default the study's.
        root: Folder that holds all runs; by default `$PLANNER_RUNS`, or `./runs`.
        address: Of a running Ray cluster; by default Ray starts on this machine for the run.
        on_event: Called after every line of the ledger with where the sweep stands.

    Raises:
        ConfigError: The name is taken, or the folder cannot be written.
        InfeasibleError: Nothing in the space can run on the cluster.
        BudgetError: The budget cannot pay for the cheapest trial.
        TrialError: Trials fail for one reason, which is said.
        ClusterUnreachableError: No cluster answers at the address, or it is gone.
        SweepInterrupted: Ctrl-C or SIGTERM; `resume` goes on.
    """
    outlook = plan(study)
    earlier = gather_earlier(study, root)
    folder = RunFolder.create(study, name, root)
    workers = [c.config.layout.num_workers for c in outlook.feasible if c.config is not None]
    try:
        chosen, num_devices = _connected(executor, address, outlook.cluster, min(workers))
    except BaseException:
        folder.undo_create()
        raise
    folder.write("plan.json", json.dumps(outlook.to_data(), indent=2))
    if earlier:
        keep_earlier(folder, earlier)
    return _session(study, folder, chosen, num_devices, on_event, added=None)


def resume(
    name: str,
    *,
    budget: Budget | None = None,
    study: Study | None = None,
    executor: ExecutorName | Executor = "ray",
    root: Path | None = None,
    address: str | None = None,
    on_event: OnEvent | None = None,
) -> Results:
    """Go on with a run: finished trials are not run again, others go on from their checkpoints.

    Args:
        name: Name or path of the run.
        budget: What to add to its budget.
        study: If given, it must be the one that the run was started with.
        executor: As for `sweep`.
        root: As for `sweep`.
        address: As for `sweep`.
        on_event: As for `sweep`.

    Raises:
        NotFoundError: There is no such run.
        ConfigError: The study was changed, or another process drives the run.
        TrialError: The ledger is damaged, or trials fail for one reason.
        ClusterUnreachableError: No cluster answers at the address, or it is gone.
        SweepInterrupted: Ctrl-C or SIGTERM.
    """
    folder = RunFolder.open(name, root)
    begun = folder.load_study()
    if study is not None and study.digest != begun.digest:
        raise _changed(folder, begun, study)
    chosen, num_devices = _connected(executor, address, resolve_cluster(begun.cluster))
    return _session(begun, folder, chosen, num_devices, on_event, added=budget)


def _connected(
    executor: ExecutorName | Executor, address: str | None, cluster: Cluster, least_workers: int = 1
) -> tuple[Executor, int]:
    """Return the executor, and how many of the cluster's devices it has; at least so many."""
    chosen = _executor(executor, address)
    try:
        num_devices = chosen.num_devices(
            cluster.num_devices, "CPU" if cluster.device.is_cpu else "GPU"
        )
        if least_workers > num_devices:
            raise InfeasibleError(
                f"every trial needs more workers than there are: at least {least_workers} workers, "
                f"{num_devices} devices.",
                hint="Choose a layout with fewer workers, or a larger cluster.",
            )
    except BaseException:
        chosen.close()
        raise
    return chosen, num_devices


def _executor(executor: ExecutorName | Executor, address: str | None) -> Executor:
    if not isinstance(executor, str):
        return executor
    if executor == "inline":
        from planner.tuning.inline import InlineExecutor

        return InlineExecutor()
    from planner.tuning.ray_executor import RayExecutor

    return RayExecutor(address)


def _session(
    study: Study,
    folder: RunFolder,
    executor: Executor,
    num_devices: int,
    on_event: OnEvent | None,
    *,
    added: Budget | None,
) -> Results:
    interruption = Interruption()
    try:
        with locked(folder.path):
            lines, torn = recover(folder.ledger)
            with Ledger(folder.ledger) as ledger, interruption.watching():
                book = _Book(ledger, on_event)
                sweep = Sweep(
                    study,
                    resolve_cluster(study.cluster),
                    write=book.write,
                    num_devices=num_devices,
                    searcher=make_searcher(study, kept_earlier(folder)),
                )
                book.sweep = sweep
                sweep.replay(lines)
                clock = StudyClock(sweep.now)
                if not lines:
                    ledger.append(_header(study, folder), durable=True)
                sweep.begin(clock.now(), added=added)
                if torn is not None:
                    sweep.note(torn, clock.now())
                driver = Driver(sweep, folder, clock, interruption)
                executor.run(driver)
                driver.tidy(at_once=True)
                sweep.end_session(clock.now())
            results = results_of(sweep, folder)
            results.write()
            folder.write("search.json", summarise(results).to_json())
    finally:
        executor.close()
    if interruption.signal is not None:
        raise SweepInterrupted(folder.name, 128 + interruption.signal)
    if driver.lost is not None:
        raise driver.lost
    _raise_if_hopeless(sweep, folder)
    return results


class _Book:
    """Writes the ledger, then tells whoever watches."""

    def __init__(self, ledger: Ledger, on_event: OnEvent | None) -> None:
        self._ledger, self._on_event = ledger, on_event
        self._previous: Line | None = None
        self.sweep: Sweep | None = None

    def write(self, line: Line, durable: bool) -> None:
        """Write a line; the watcher hears of the one before, which the core has applied by now."""
        self._ledger.append(line, durable=durable)
        if self._on_event is not None and self.sweep is not None and self._previous is not None:
            self._on_event(progress_of(self.sweep, self._previous))
        self._previous = line


def _header(study: Study, folder: RunFolder) -> Line:
    return {"kind": "header", "version": 1, "run": folder.name, "study": study.digest}


def _raise_if_hopeless(sweep: Sweep, folder: RunFolder) -> None:
    ended = [r for r in sweep.trials.values() if r.state.is_finished]
    failed = [r for r in ended if r.state is TrialState.FAILED]
    if sweep.give_up is None and (not failed or any(r.flops for r in ended)):
        return
    reason = sweep.give_up or failed[0].reason or "unknown"
    raise TrialError(
        f"no trial could train; {len(failed)} of {len(ended)} failed, e.g. {failed[0].trial}: "
        f"{reason}",
        hint=f"Put that right, then go on with: planner sweep --resume {folder.name}",
    )


def _changed(folder: RunFolder, begun: Study, study: Study) -> ConfigError:
    before, now = _flat(begun.model_dump(mode="json")), _flat(study.model_dump(mode="json"))
    ignored = ("question", "budget", "target", "overrides")
    names = [
        name
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name.split(".")[0] not in ignored
    ]
    shown = "\n".join(f"  {n}: {before.get(n)!r} -> {now.get(n)!r}" for n in names[:12])
    return ConfigError(
        f"run {folder.name!r} was started with another study; a run resumes with its own:\n{shown}",
        hint=f"Resume without the file (planner sweep --resume {folder.name}), or start a new run "
        "with --name NAME.",
    )


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(data, dict) and data:
        parts = [_flat(value, f"{prefix}.{key}" if prefix else key) for key, value in data.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {prefix: data}
