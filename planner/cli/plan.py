"""`planner plan`: what a study would run and cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from planner.cli.output import echo_json, echo_note, echo_table, echo_text
from planner.units import format_bytes, format_count, format_flops, format_seconds, format_usd

if TYPE_CHECKING:
    from planner.planning import Candidate, Plan


@click.command(epilog="Example: planner plan quickstart --set budget.usd=10")
@click.argument("study")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a setting.")
@click.option("--search-space", metavar="NAME", help="Use another search space.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    study: str, overrides: tuple[str, ...], search_space: str | None, as_json: bool
) -> None:
    """Show what STUDY would run, what that costs, and what is rejected and why.

    Nothing is started. STUDY is a YAML file, or the name of a shipped study.
    """
    from planner.planning import plan
    from planner.study import load_study

    outlook = plan(load_study(study, overrides, search_space=search_space))
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
