"""`planner rehearse`: a study's sweep in simulated time, before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from planner.cli.output import echo_json, echo_note, echo_table, plain
from planner.units import format_flops, format_number, format_seconds

if TYPE_CHECKING:
    from planner.tuning.core import Sweep
    from planner.tuning.sources import LossLaw

_EXAMPLES: Final = """\b
Examples:
  planner rehearse quickstart
  planner rehearse studies/mine.yaml --law first-run --like first-run
"""


@click.command(epilog=_EXAMPLES)
@click.argument("study")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a setting.")
@click.option("--search-space", metavar="NAME", help="Use another search space.")
@click.option("--law", metavar="RUN", help="Losses by this run's fitted law, or a laws.json.")
@click.option("--like", metavar="RUN", help="Correct the times by what this run measured.")
@click.option("--runs", type=click.Path(path_type=Path), help="Folder of all runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(**options: Any) -> None:
    """Run STUDY in simulated time: what it would spend, when it would end, what it would find.

    The searcher, the scheduler and the budget are those of a real sweep. Times come from the cost
    model, losses from a law of size and tokens: without --law the published one of Hoffmann et al.
    2022, whose level is not your data's, so that only its order of the trials means anything.
    """
    from planner.costs import resolve_cluster
    from planner.run_folder import RunFolder
    from planner.study import load_study
    from planner.tuning.outcome import standing_of
    from planner.tuning.searchers import make_searcher
    from planner.tuning.simulated import simulate
    from planner.tuning.sources import LawSource
    from planner.tuning.warm_start import gather_earlier

    study = load_study(options["study"], options["overrides"], search_space=options["search_space"])
    slowdown = 1.0
    if options["like"] is not None:
        slowdown = standing_of(RunFolder.open(options["like"], options["runs"])).correction
    law = _published if options["law"] is None else _fitted(options["law"], options["runs"])
    cluster = resolve_cluster(study.cluster)
    sweep = simulate(
        study,
        LawSource(study, cluster, law, slowdown=slowdown),
        cluster=cluster,
        searcher=make_searcher(study, gather_earlier(study, options["runs"])),
    )
    if options["as_json"]:
        echo_json(_as_data(sweep, slowdown))
        return
    _show(sweep, slowdown)
    if options["law"] is None:
        echo_note("losses are those of a published law; give --law RUN for your own.")


def _published(num_params: float, num_tokens: float) -> float:
    """Return 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28 nats per token.

    Source: Hoffmann et al. 2022 (arXiv:2203.15556), equation 10.
    """
    return float(1.69 + 406.4 / max(num_params, 1.0) ** 0.34 + 410.7 / max(num_tokens, 1.0) ** 0.28)


def _fitted(name: str, runs: Path | None) -> LossLaw:
    """Return the loss of a run's fitted law, beyond the range that it was fitted on too."""
    from planner.cli.places import run_or_file
    from planner.curves import ScalingLaw

    source = run_or_file(name, runs)
    law = ScalingLaw.load(source / "laws.json" if source.is_dir() else source)

    def loss(num_params: float, num_tokens: float) -> float:
        return float(law.predict(num_params, num_tokens).loss)

    return loss


def _as_data(sweep: Sweep, slowdown: float) -> dict[str, Any]:
    from planner.tuning.outcome import progress_of

    progress = progress_of(sweep, {"kind": "session_ended"})
    return {
        "schema": "planner.rehearsal/1",
        "study": sweep.study.name,
        "spend": plain(progress.spend),
        "budget": progress.budget.limits(),
        "slowdown": slowdown,
        "counts": {str(state): n for state, n in progress.counts.items()},
        "best": plain(progress.best),
        "trials": [plain(record.result(sweep.now)) for record in sweep.trials.values()],
    }


def _show(sweep: Sweep, slowdown: float) -> None:
    from planner.budget import format_amount
    from planner.tuning.outcome import progress_of

    progress = progress_of(sweep, {"kind": "session_ended"})
    rows = [record.result(sweep.now) for record in sweep.trials.values()]
    metric = sweep.study.first_objective.metric
    echo_table(
        ["trial", "would be", "workers", "FLOPs", metric, "time"],
        [
            [
                row.trial,
                str(row.state),
                str(row.num_workers),
                format_flops(row.train_flops or 0.0).removesuffix(" FLOPs"),
                "-" if getattr(row, metric) is None else format_number(getattr(row, metric), 4),
                "-" if row.elapsed_seconds is None else format_seconds(row.elapsed_seconds),
            ]
            for row in rows
        ],
        left=(0, 1),
    )
    counts = ", ".join(f"{n} {state}" for state, n in sorted(progress.counts.items()))
    click.echo(f"\n{counts}; times x{slowdown:.2g} of the cost model.")
    click.echo(
        f"Would spend {format_flops(progress.spend.flops)}, "
        f"{format_amount('device_hours', progress.spend.device_hours)}, and end after "
        f"{format_seconds(progress.spend.seconds)}."
    )
    for name, limit in progress.budget.limits().items():
        share = getattr(progress.spend, name) / limit
        click.echo(f"Budget {format_amount(name, limit)}: {share:.0%}.")
