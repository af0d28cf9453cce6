"""`planner sweep`: run a study's trials, or go on with a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.output import echo_json, echo_note, echo_table, echo_text, plain
from planner.errors import ConfigError
from planner.units import format_flops, format_number, format_seconds

if TYPE_CHECKING:
    from planner.budget import Budget
    from planner.results import Results
    from planner.study import Study

_EXAMPLES = """\b
Examples:
  planner sweep quickstart
  planner sweep studies/mine.yaml --set search.num_trials=8 --name mine-8
  planner sweep --resume mine-8 --budget "+2 device-hours"
"""


@click.command(epilog=_EXAMPLES)
@click.argument("study", required=False)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a setting.")
@click.option("--search-space", metavar="NAME", help="Use another search space.")
@click.option("--name", metavar="NAME", help="Name of the run; by default the study's.")
@click.option("--runs", type=click.Path(path_type=Path), help="Folder of all runs.")
@click.option("--budget", metavar="AMOUNT", help="Instead of the study's; added with --resume.")
@click.option("--resume", "resumed", metavar="NAME", help="Go on with a run.")
@click.option("--executor", type=click.Choice(["ray", "inline"]), default="ray", show_default=True)
@click.option("--address", metavar="ADDRESS", help="Of a running Ray cluster.")
@click.option("--dry-run", is_flag=True, help="Show the plan and start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def command(**options: Any) -> int:
    """Run the trials of STUDY with Ray Tune, or go on with a run.

    STUDY is a YAML file, or the name of a shipped study. The ledger in the run's folder makes it
    safe to interrupt at any time: with --resume, finished trials are not run again and unfinished
    ones go on from their last checkpoint.
    """
    if options["study"] is None and options["resumed"] is None:
        raise click.UsageError("give a STUDY, or --resume NAME.")
    if options["study"] is None and (options["overrides"] or options["search_space"]):
        raise ConfigError(
            "a run resumes with its own study: --set and --search-space need a STUDY."
        )
    if options["resumed"] is not None and options["name"] is not None:
        raise ConfigError("a run keeps its name: give --name without --resume.")
    study = _study(options)
    if options["dry_run"]:
        return _dry_run(options)
    from planner.cli.progress import ProgressPrinter
    from planner.tuning.sweeping import SweepInterrupted

    try:
        with ProgressPrinter(quiet=options["quiet"]) as printer:
            results = _run(study, options, printer)
    except SweepInterrupted as stop:
        echo_note(f"interrupted. Go on with: planner sweep --resume {stop.name}")
        return stop.exit_code
    _show(results, as_json=options["as_json"])
    return 0


def _study(options: dict[str, Any]) -> Study | None:
    from planner.study import load_study

    if options["study"] is None:
        return None
    study = load_study(options["study"], options["overrides"], search_space=options["search_space"])
    budget = _budget(options["budget"])
    return study if budget is None or options["resumed"] else study.replace(budget=budget)


def _budget(text: str | None) -> Budget | None:
    from planner.budget import Budget

    return None if text is None else Budget.parse(text.strip().removeprefix("+"))


def _dry_run(options: dict[str, Any]) -> int:
    from planner.cli.plan import command as plan_command

    if options["study"] is None:
        raise ConfigError("--dry-run shows the plan of a study: give a STUDY.")
    budget = _budget(options["budget"])
    limits = [] if budget is None else [f"budget={json.dumps(budget.limits())}"]
    click.get_current_context().invoke(
        plan_command,
        study=options["study"],
        overrides=(*options["overrides"], *limits),
        search_space=options["search_space"],
        runs=options["runs"],
        as_json=options["as_json"],
    )
    return 0


def _run(study: Study | None, options: dict[str, Any], on_event: Any) -> Results:
    from planner.tuning import resume, sweep

    common = {
        "executor": options["executor"],
        "root": options["runs"],
        "address": options["address"],
        "on_event": on_event,
    }
    if options["resumed"] is not None:
        budget = _budget(options["budget"])
        return resume(options["resumed"], study=study, budget=budget, **common)
    assert study is not None  # noqa: S101 -- the command has seen to it
    return sweep(study, name=options["name"], **common)


def _show(results: Results, *, as_json: bool) -> None:
    if as_json:
        best = results.best()
        echo_json(
            {
                "schema": "planner.sweep/1",
                "run": results.folder.name,
                "folder": str(results.folder.path),
                "spend": plain(results.spend),
                "budget": results.study.budget.limits(),
                "best": None if best is None else plain(best),
                "trials": [plain(trial) for trial in results.trials],
            }
        )
        return
    metric = results.study.first_objective.metric
    echo_table(
        ["trial", "state", "workers", "params", "FLOPs", metric, "time", "reason"],
        [_row(trial, metric) for trial in results.trials],
        left=(0, 1, 7),
    )
    best = results.best()
    if best is not None:
        echo_text(f"best: {best.trial} with {metric} {getattr(best, metric):.4g}")
    spend = results.spend
    echo_text(
        f"spent {format_flops(spend.flops)}, {spend.device_hours:.3g} device-hours, "
        f"{format_seconds(spend.seconds)} of wall clock"
    )
    echo_note(f"results: {results.folder.results}")
    echo_note(f"next: planner fit {results.folder.name}")


def _row(trial: Any, metric: str) -> list[str]:
    from planner.units import format_count

    value = getattr(trial, metric)
    params, flops, seconds = trial.num_params, trial.train_flops, trial.elapsed_seconds
    return [
        trial.trial,
        str(trial.state),
        str(trial.num_workers),
        "-" if params is None else format_count(params),
        "-" if flops is None else format_flops(flops).removesuffix(" FLOPs"),
        "-" if value is None else format_number(value, 4),
        "-" if seconds is None else format_seconds(seconds),
        (trial.reason or "").split("\n")[0],
    ]
