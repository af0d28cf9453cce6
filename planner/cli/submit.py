"""`planner submit`: a study as a job on a Ray cluster."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.output import echo_json, echo_note


@click.command(epilog="Example: planner submit quickstart --address http://head:8265")
@click.argument("study")
@click.option("--address", required=True, metavar="URL", help="Job server of the cluster.")
@click.option("--name", help="Name of the run; by default the study's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a setting.")
@click.option("--search-space", metavar="NAME", help="Use another search space.")
@click.option("--runs", type=click.Path(path_type=Path), help="Folder of runs on this machine.")
@click.option("--storage", metavar="DIR", help="Folder of runs on the cluster.")
@click.option("--python", metavar="PATH", help="Interpreter on the cluster that has planner.")
@click.option("--no-wait", is_flag=True, help="Return when the job is accepted.")
@click.option("--dry-run", is_flag=True, help="Show the plan and submit nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def command(
    ctx: click.Context,
    study: str,
    address: str,
    name: str | None,
    overrides: tuple[str, ...],
    search_space: str | None,
    runs: Path | None,
    storage: str | None,
    python: str | None,
    no_wait: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Run STUDY as a job on a running Ray cluster, follow it, and fetch its results.

    Ctrl-C stops following; the job goes on. The exit code is that of the sweep.
    """
    from planner.cli.jobs import finish
    from planner.jobs import submit
    from planner.planning import plan
    from planner.study import load_study

    loaded = load_study(study, overrides, search_space=search_space)
    outlook = plan(loaded)
    if dry_run:
        echo_note(f"{len(outlook.feasible)} trials would be submitted to {address}.")
        return 0
    job = submit(loaded, address, name=name, root=runs, storage=storage, python=python)
    echo_note(f"submitted {job.name} as {job.submission_id} to {job.address}")
    if no_wait:
        if as_json:
            echo_json(job)
        else:
            click.echo(f"Follow it with: planner jobs {job.name} --follow")
        return 0
    return finish(job, runs, as_json=as_json)
