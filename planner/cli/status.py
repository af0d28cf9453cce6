"""`planner status`: where runs stand, read from their ledgers alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.output import echo_json, echo_note, echo_table, echo_text, plain
from planner.units import format_flops, format_number, format_seconds

if TYPE_CHECKING:
    from planner.tuning.outcome import Standing
    from planner.tuning.search_summary import SearchSummary

_MOST_ON_FRONT = 12


@click.command(epilog="Example: planner status quickstart --json")
@click.argument("name", required=False)
@click.option("--runs", type=click.Path(path_type=Path), help="Folder of all runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(name: str | None, runs: Path | None, as_json: bool) -> None:
    """Show where the run NAME stands, or all runs.

    Only the ledger is read, so this works while the sweep runs, after it, and after a crash.
    """
    from planner.run_folder import RunFolder, list_runs
    from planner.tuning.outcome import standing_of

    names = [name] if name is not None else list_runs(runs)
    found = [
        standing_of(RunFolder.open(each, runs), with_summary=name is not None) for each in names
    ]
    if as_json:
        documents = [_as_data(each) for each in found]
        echo_json(documents[0] if name is not None else {"runs": documents})
        return
    if name is None and not found:
        echo_note("no runs yet. Start one with: planner sweep quickstart")
        return
    echo_table(
        ["run", "is", "trials", "best", "spent", "time"],
        [_row(each) for each in found],
        left=(0, 1, 2),
    )
    if name is not None:
        _show_trials(found[0])


def _as_data(standing: Standing) -> dict[str, Any]:
    progress = standing.progress
    return {
        "schema": "planner.status/1",
        "run": standing.name,
        "is": standing.word,
        "num_sessions": standing.num_sessions,
        "counts": {str(state): n for state, n in progress.counts.items()},
        "spend": asdict(progress.spend),
        "budget": progress.budget.limits(),
        "best": plain(progress.best),
        "running": [plain(trial) for trial in progress.running],
        "seconds_left": progress.seconds_left,
        "notes": list(standing.notes),
        "search": standing.summary.to_data(),
    }


def _row(standing: Standing) -> list[str]:
    progress = standing.progress
    counts = ", ".join(f"{n} {state}" for state, n in sorted(progress.counts.items()))
    metric = progress.study.first_objective.metric
    best = getattr(progress.best, metric) if progress.best else None
    spent = progress.budget.spent_fraction(progress.spend)
    return [
        standing.name,
        standing.word,
        counts or "-",
        "-" if best is None else format_number(best, 4),
        f"{spent:.0%}",
        format_seconds(progress.spend.seconds),
    ]


def _show_search(summary: SearchSummary) -> None:
    """Print what the search found beside its trials, as far as that can be said."""
    front, shares, gain = summary.front, summary.importances, summary.gain
    if front is not None:
        echo_text(
            f"Pareto front of {front.num_compared} trials, hypervolume {front.hypervolume[-1]:.3f}:"
            if front.hypervolume
            else f"Pareto front of {front.num_compared} trials:"
        )
        rows = [
            [trial, *(format_number(value, 4) for value in values)]
            for trial, values in zip(front.trials, front.values, strict=True)
        ]
        more = len(rows) - _MOST_ON_FRONT
        rows = rows[:: max(1, -(-len(rows) // _MOST_ON_FRONT))]
        echo_table(["trial", *front.metrics], rows, left=(0,))
        if more > 0:
            echo_note(f"{len(rows)} of the {len(front.trials)} on the front; all with --json")
    if shares is not None:
        parts = [f"{name} {share:.0%}" for name, share in shares.shares.items()]
        echo_text(f"what decides, by {shares.num_trials} trials: {', '.join(parts)}")
    if gain is not None:
        echo_text(str(gain))


def _show_trials(standing: Standing) -> None:
    metric = standing.progress.study.first_objective.metric
    for trial in standing.progress.running:
        value = getattr(trial, metric)
        shown = "" if value is None else f", {metric} {format_number(value, 4)}"
        echo_text(f"{trial.trial}: {format_flops(trial.train_flops or 0.0)}{shown}")
    _show_search(standing.summary)
    for note in standing.notes:
        echo_note(note)
    if standing.word == "interrupted":
        echo_note(f"go on with: planner sweep --resume {standing.name}")
