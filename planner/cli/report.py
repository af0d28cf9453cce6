"""`planner report`: the page and the files of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.output import echo_json, echo_note

if TYPE_CHECKING:
    from planner.run_folder import RunFolder


@click.command(epilog="Example: planner report quickstart --open")
@click.argument("run")
@click.option("--open", "opened", is_flag=True, help="Show the page in a browser.")
@click.option(
    "--also",
    "formats",
    type=click.Choice(["optuna", "tensorboard"]),
    multiple=True,
    help="Write it for optuna-dashboard, or for TensorBoard's HParams, too.",
)
@click.option("--runs", type=click.Path(path_type=Path), metavar="DIR", help="Folder of all runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    run: str, opened: bool, formats: tuple[str, ...], runs: Path | None, as_json: bool
) -> None:
    """Write the report of RUN: a page, Markdown, and its data as JSON, CSV and Parquet."""
    from planner.report import write_report
    from planner.run_folder import RunFolder

    folder = RunFolder.open(run, runs)
    page = write_report(folder)
    shown = [_write_also(folder, each) for each in dict.fromkeys(formats)]
    if as_json:
        files = sorted(str(path) for path in page.parent.iterdir())
        echo_json({"schema": "planner.report-files/1", "page": str(page), "files": files})
    else:
        click.echo(str(page))
        for command_line in shown:
            echo_note(f"see it with: {command_line}")
    if opened:
        click.launch(page.as_uri())


def _write_also(folder: RunFolder, name: str) -> str:
    """Write a run in another tool's format, and return the command that shows it."""
    from planner.results import read_results
    from planner.tuning.exporting import export_optuna, export_tensorboard

    results = read_results(folder)
    if name == "optuna":
        return f"optuna-dashboard {export_optuna(results, folder.report / 'optuna.journal')}"
    return f"tensorboard --logdir {export_tensorboard(results, folder.report / 'tensorboard')}"
