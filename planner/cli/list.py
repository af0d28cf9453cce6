"""`planner list`: what there is to run, and what was run."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.output import echo_json, echo_table


@click.command(epilog="Example: planner list --json")
@click.option("--runs", type=click.Path(path_type=Path), help="Folder of runs.")
@click.option("--settings", is_flag=True, help="List every setting of a trial and of a study.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(runs: Path | None, settings: bool, as_json: bool) -> None:
    """List shipped and local studies, search spaces, runs, or every setting."""
    if settings:
        _settings(as_json)
        return
    from planner import library
    from planner.run_folder import list_runs

    found = {
        "studies": library.names("studies"),
        "search_spaces": library.names("search_spaces"),
        "runs": list_runs(runs),
    }
    if as_json:
        echo_json(found)
        return
    rows = [[kind.replace("_", " "), name] for kind, names in found.items() for name in names]
    echo_table(["kind", "name"], rows, left=(0, 1))


def _settings(as_json: bool) -> None:
    from planner.settings import settings_of
    from planner.study import Study
    from planner.trial import TrialConfig

    found = {"trial": list(settings_of(TrialConfig)), "study": list(settings_of(Study))}
    if as_json:
        echo_json(found)
        return
    for title, settings in found.items():
        click.echo(f"\n## Settings of a {title}\n")
        click.echo("| setting | value | default | meaning |\n|---|---|---|---|")
        for s in settings:
            click.echo(f"| `{s.path}` | {s.kind} | {s.default} | {s.meaning} |")
