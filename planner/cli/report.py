"""`planner report`: the page and the files of a run."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.output import echo_json


@click.command(epilog="Example: planner report quickstart --open")
@click.argument("run")
@click.option("--open", "opened", is_flag=True, help="Show the page in a browser.")
@click.option("--runs", type=click.Path(path_type=Path), metavar="DIR", help="Folder of all runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(run: str, opened: bool, runs: Path | None, as_json: bool) -> None:
    """Write the report of RUN: a page, Markdown, and its data as JSON, CSV and Parquet."""
    from planner.report import write_report
    from planner.run_folder import RunFolder

    page = write_report(RunFolder.open(run, runs))
    if as_json:
        files = sorted(str(path) for path in page.parent.iterdir())
        echo_json({"schema": "planner.report-files/1", "page": str(page), "files": files})
    else:
        click.echo(str(page))
    if opened:
        click.launch(page.as_uri())
