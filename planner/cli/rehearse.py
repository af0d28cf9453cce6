"""`planner rehearse`: a study's sweep in simulated time, before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from planner.cli.output import echo_json, echo_note, echo_table, echo_text, plain
from planner.errors import FitError, InfeasibleError
from planner.units import format_count, format_flops, format_number, format_seconds

if TYPE_CHECKING:
    from planner.planning import Plan
    from planner.recommendation import Recommendation
    from planner.tuning.core import Sweep
    from planner.tuning.sources import LossLaw, Pace

_SPREAD_FRACTION: Final = 0.01
"""Of the loss, between trials of one size and length; so much do settings matter near a good one."""
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
@click.option("--no-probe", is_flag=True, help="Measure nothing here: times of the cost model.")
@click.option("--runs", type=click.Path(path_type=Path), help="Folder of all runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(**options: Any) -> None:
    """Run STUDY in simulated time: what it would spend, when it would end, what it would find.

    The searcher, the scheduler and the budget are those of a real sweep. Times come from the cost
    model, corrected on a CPU by a few seconds of training of the smallest and the largest trial
    here, or by --like. Losses come from a law of size and tokens with a spread of 1 % between
    trials: without --law the published one of Hoffmann et al. 2022, whose level is not your data's,
    so that only its order of the trials means anything.
    """
    from planner.planning import plan
    from planner.study import load_study
    from planner.tuning.searchers import make_searcher
    from planner.tuning.simulated import simulate
    from planner.tuning.sources import LawSource
    from planner.tuning.warm_start import gather_earlier

    study = load_study(options["study"], options["overrides"], search_space=options["search_space"])
    outlook = plan(study)
    pace, said = _pace(outlook, options)
    law = _published if options["law"] is None else _fitted(options["law"], options["runs"])
    sweep = simulate(
        study,
        LawSource(study, outlook.cluster, law, pace=pace, spread_fraction=_SPREAD_FRACTION),
        cluster=outlook.cluster,
        searcher=make_searcher(study, gather_earlier(study, options["runs"])),
    )
    found = _recommended(sweep)
    if options["as_json"]:
        echo_json(_as_data(sweep, pace, found))
        return
    _show(sweep, said)
    echo_text(_said_of(found))
    if options["law"] is None:
        echo_note("losses are those of a published law; give --law RUN for your own.")


def _pace(outlook: Plan, options: dict[str, Any]) -> tuple[Pace, str]:
    """Return true times over the cost model's, and where they come from in words."""
    from planner.run_folder import RunFolder
    from planner.tuning.outcome import standing_of
    from planner.tuning.probing import probe
    from planner.tuning.sources import Pace

    if options["like"] is not None:
        ratio = standing_of(RunFolder.open(options["like"], options["runs"])).correction
        return Pace(steps=((1.0, ratio),)), f"times x{ratio:.2g} of the cost model, as measured"
    pace = None if options["no_probe"] else probe(outlook)
    if pace is None:
        return Pace(), "times of the cost model, not measured here"
    ratios = " to ".join(f"x{ratio:.2g}" for _, ratio in pace.steps)
    return pace, f"steps {ratios} of the cost model, measured here on a few"


def _recommended(sweep: Sweep) -> Recommendation | FitError | InfeasibleError:
    """Return what would be recommended after this sweep, or why nothing could be."""
    from planner.curves import fit
    from planner.recommendation import recommend
    from planner.run_folder import RunFolder
    from planner.tuning.outcome import results_of

    results = results_of(sweep, RunFolder(Path(sweep.study.folder_name)))
    try:
        law = fit(results, seed=sweep.study.search.seed)
        return recommend(law, sweep.study.target_budget, sweep.study, results=results)
    except (FitError, InfeasibleError) as error:
        return error


def _said_of(found: Recommendation | FitError | InfeasibleError) -> str:
    if isinstance(found, FitError | InfeasibleError):
        return f"It would find no configuration to recommend: {found.message}"
    lower, upper = found.interval
    loss = found.predicted_loss
    params = found.choice.num_params
    return (
        f"It would recommend {format_count(params)} parameters with a loss known to "
        f"{lower / loss - 1:+.1%} and {upper / loss - 1:+.1%} ({found.level:.0%} interval)."
    )


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


def _as_data(
    sweep: Sweep, pace: Pace, found: Recommendation | FitError | InfeasibleError
) -> dict[str, Any]:
    from planner.tuning.outcome import progress_of

    progress = progress_of(sweep, {"kind": "session_ended"})
    return {
        "schema": "planner.rehearsal/1",
        "study": sweep.study.name,
        "spend": plain(progress.spend),
        "budget": progress.budget.limits(),
        "pace": plain(pace),
        "counts": {str(state): n for state, n in progress.counts.items()},
        "best": plain(progress.best),
        "finding": _said_of(found),
        "trials": [plain(record.result(sweep.now)) for record in sweep.trials.values()],
    }


def _show(sweep: Sweep, said: str) -> None:
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
    echo_text(f"\n{counts}; {said}.")
    echo_text(
        f"Would spend {format_flops(progress.spend.flops)}, "
        f"{format_amount('device_hours', progress.spend.device_hours)}, and end after "
        f"{format_seconds(progress.spend.seconds)}."
    )
    for name, limit in progress.budget.limits().items():
        share = getattr(progress.spend, name) / limit
        echo_text(f"Budget {format_amount(name, limit)}: {share:.0%}.")
