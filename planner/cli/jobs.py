"""`planner jobs`: list, follow, stop and fetch submitted runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.output import echo_json, echo_note, echo_table
from planner.errors import ConfigError, JobError

if TYPE_CHECKING:
    from planner.jobs import Job


@click.command(epilog="Example: planner jobs quickstart --follow")
@click.argument("name", required=False)
@click.option("--follow", "-f", is_flag=True, help="Stream its output, then fetch its results.")
@click.option("--stop", "is_stop", is_flag=True, help="Stop it cleanly, then fetch its results.")
@click.option("--fetch", "is_fetch", is_flag=True, help="Download its results.")
@click.option("--runs", type=click.Path(path_type=Path), help="Folder of runs on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    name: str | None,
    follow: bool,
    is_stop: bool,
    is_fetch: bool,
    runs: Path | None,
    as_json: bool,
) -> int:
    """Show submitted runs, or act on the one called NAME."""
    from planner import jobs

    if name is None:
        if follow or is_stop or is_fetch:
            raise ConfigError("--follow, --stop and --fetch need the NAME of a run.")
        _show(jobs.list_jobs(runs), as_json)
        return 0
    job = jobs.job_of(name, runs)
    if follow:
        return finish(job, runs, as_json=as_json)
    job = jobs.stop(job, runs) if is_stop else jobs.refresh(job, runs)
    if is_fetch or is_stop:
        echo_note(f"results are in {jobs.fetch(job, runs).path}")
    _show([job], as_json)
    return 0


def finish(job: Job, runs: Path | None, *, as_json: bool) -> int:
    """Follow a job to its end, fetch its results, and return the sweep's exit code."""
    from planner import jobs

    try:
        ended = jobs.follow(job, lambda text: click.echo(text, nl=False, err=True), runs)
    except KeyboardInterrupt:
        echo_note(
            f"\nstopped following; the job goes on. Follow: planner jobs {job.name} --follow. "
            f"Stop: planner jobs {job.name} --stop"
        )
        return 130
    try:
        folder = jobs.fetch(ended, runs)
        echo_note(f"results are in {folder.path}")
    except JobError as error:
        echo_note(f"{error.message} {error.hint or ''}")
    if as_json:
        echo_json(ended)
    else:
        code = "" if ended.exit_code is None else f", exit code {ended.exit_code}"
        click.echo(f"{ended.submission_id}: {ended.status}{code}")
    return ended.exit_code if ended.exit_code is not None else 1


def _show(found: list[Job], as_json: bool) -> None:
    if as_json:
        echo_json(found)
        return
    rows = [
        [job.name, job.status, "" if job.exit_code is None else str(job.exit_code), job.address]
        for job in found
    ]
    echo_table(["run", "status", "exit code", "cluster"], rows, left=(0, 1, 3))
