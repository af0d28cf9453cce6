"""`planner plan`: what a study would run and cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.output import echo_json, echo_note, echo_table, echo_text
from planner.units import format_bytes, format_count, format_flops, format_seconds, format_usd

if TYPE_CHECKING:
    from planner.costs.measured import Measured
    from planner.planning import Candidate, Plan
    from planner.study import Study


@click.command(epilog="Example: planner plan quickstart --set budget.usd=10")
@click.argument("study")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a setting.")
@click.option("--search-space", metavar="NAME", help="Use another search space.")
@click.option("--runs", type=click.Path(path_type=Path), help="Folder of all runs.")
@click.option("--no-calibration", is_flag=True, help="Ignore what earlier runs measured.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    study: str,
    overrides: tuple[str, ...],
    search_space: str | None,
    runs: Path | None,
    no_calibration: bool,
    as_json: bool,
) -> None:
    """Show what STUDY would run, what that costs, and what is rejected and why.

    Nothing is started. STUDY is a YAML file, or the name of a shipped study. Estimates are calibrated
    on the trials of finished runs on a cluster of the same description. On CPUs, up to four shapes whose
    memory is near the limit are traced from the engine's own model, in a minute at most.
    """
    from planner.costs.tracing import Traces
    from planner.planning import plan
    from planner.study import load_study

    loaded = load_study(study, overrides, search_space=search_space)
    measured = None if no_calibration else _measured(loaded, runs)
    outlook = plan(loaded, measured=measured, traces=Traces())
    if as_json:
        echo_json(outlook.to_data())
        return
    headings = ["trial", "params", "tokens", "workers", "FLOPs", "memory", "time", "dev-h", "USD"]
    rows = [_row(candidate) for candidate in outlook.candidates]
    if all(row[-1] == "-" for row in rows):
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    echo_table(headings, rows)
    for candidate in outlook.rejected:
        echo_note(f"{candidate.trial} is infeasible: {candidate.reason}")
    _summary(outlook)


def _measured(study: Study, root: Path | None) -> Measured | None:
    """Return what earlier runs measured; nothing is loaded where there are none."""
    from planner.run_folder import RunFolder, list_runs

    if not any(RunFolder.open(name, root).results.is_file() for name in list_runs(root)):
        return None
    from planner.results import read_measured

    return read_measured(study.cluster, root)


def _row(candidate: Candidate) -> list[str]:
    cost = candidate.cost
    if cost is None:
        return [candidate.trial, *["-"] * 8]
    return [
        candidate.trial,
        format_count(cost.num_params),
        format_count(cost.train_tokens),
        str(cost.num_devices),
        format_flops(cost.train_flops).removesuffix(" FLOPs"),
        format_bytes(cost.peak_memory_bytes),
        format_seconds(cost.startup_seconds + cost.train_seconds),
        f"{cost.device_hours:.2g}",
        "-" if cost.usd is None else format_usd(cost.usd),
    ]


def _summary(outlook: Plan) -> None:
    from planner.budget import format_amount

    study, total = outlook.study, outlook.total
    echo_text(
        f"\n{len(outlook.feasible)} trials to run, {len(outlook.rejected)} rejected; "
        f"{study.search.algorithm} search, scheduler {study.search.scheduler.name}, "
        f"cluster {outlook.cluster}."
    )
    if outlook.calibrated_on:
        number = sum(trials for _, trials in outlook.calibrated_on)
        names = ", ".join(name for name, _ in outlook.calibrated_on)
        echo_text(f"Estimates are calibrated on {number} trials of: {names}.")
    _say_memory(outlook)
    if outlook.is_sample:
        echo_text("The search picks its own points; these are a sample of the space.")
    echo_text(
        f"Everything to its end: {format_flops(total.flops)}, "
        f"{format_amount('device_hours', total.device_hours)}, "
        f"about {format_seconds(total.seconds)} of wall clock."
    )
    for name, (need, limit) in outlook.bill().items():
        verdict = "fits" if need <= limit else "the sweep stops when it is spent"
        echo_text(
            f"Budget {format_amount(name, limit)}: {need / limit:.0%} of it planned; {verdict}."
        )


def _say_memory(outlook: Plan) -> None:
    """Say which figure of memory the candidates near the limit have."""
    near = [c for c in outlook.candidates if c.memory_note is not None]
    if not near:
        return
    echo_text(
        f"{len(near)} candidates are near the memory limit; the memory of "
        f"{outlook.num_memory_traces} shapes was traced."
    )
    for note in dict.fromkeys(c.memory_note for c in near if c.is_feasible):
        trials = ", ".join(c.trial for c in near if c.memory_note == note and c.is_feasible)
        echo_text(f"{trials}: {note}.")
