"""`planner recommend`: the configuration to train at a budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.output import echo_json, echo_note, echo_table, echo_text
from planner.units import format_count, format_number, format_seconds

if TYPE_CHECKING:
    from planner.budget import Budget
    from planner.curves import ScalingLaw
    from planner.recommendation import Option, Recommendation
    from planner.results import Results
    from planner.run_folder import RunFolder
    from planner.study import Study


@click.command(epilog='Example: planner recommend quickstart --budget "1e16 flops" --deadline 2h')
@click.argument("run")
@click.option("--budget", metavar="AMOUNT", help="As '1e18 flops', '20 gpuh, 40usd' or '5 kwh'.")
@click.option("--deadline", metavar="DURATION", help="Wall-clock time, as '12h' or '1d12h'.")
@click.option("--cluster", metavar="COUNTxDEVICE", help="Where to train, as 8xh100-sxm.")
@click.option("--max-params", metavar="COUNT", help="Largest model, as 7B.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Also write the configuration: .json for the engine, .yaml as a study.",
)  # fmt: skip
@click.option("--runs", type=click.Path(path_type=Path), metavar="DIR", help="Folder of all runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    run: str,
    budget: str | None,
    deadline: str | None,
    cluster: str | None,
    max_params: str | None,
    output: Path | None,
    runs: Path | None,
    as_json: bool,
) -> None:
    """Recommend the configuration to train next, from the trials of RUN.

    Without a budget it is for the study's target, or for ten times what the study could spend.
    """
    from planner.costs import parse_cluster
    from planner.recommendation import recommend, write_recommendation
    from planner.recommendation.writing import write_trial
    from planner.results import read_results
    from planner.run_folder import RunFolder
    from planner.units import parse_count

    folder = RunFolder.open(run, runs)
    results = read_results(folder)
    study = results.study
    place = parse_cluster(cluster) if cluster else study.cluster
    answer = recommend(
        _law(folder, results),
        wanted_budget(study, budget, deadline),
        study,
        results=results,
        cluster=place,
        max_params=None if max_params is None else int(parse_count(max_params)),
    )
    paths = write_recommendation(answer, folder, place)
    if output is not None:
        write_trial(answer, output, place)
    if as_json:
        echo_json(json.loads(answer.to_json()))
        return
    _show(answer)
    _best_so_far(results)
    _warn(answer)
    for path in (*paths, *([output] if output else [])):
        echo_note(f"wrote {path}")


def _law(folder: RunFolder, results: Results) -> ScalingLaw:
    """Return the run's law; it is written, since it may be new."""
    from planner.recommendation import run_law

    law = run_law(folder, results)
    folder.write("laws.json", law.to_json())
    return law


def wanted_budget(study: Study, budget: str | None, deadline: str | None) -> Budget:
    """Return the budget of the options, or the study's own, with the deadline as its seconds.

    Raises:
        ConfigError: An amount cannot be read, or is not above 0.
    """
    from planner.budget import Budget
    from planner.config import parse_config
    from planner.units import parse_seconds

    if budget is None and deadline is None:
        return study.target_budget
    limits = Budget.parse(budget).limits() if budget else study.target_budget.limits()
    if deadline is not None:
        seconds = parse_seconds(deadline)
        limits["seconds"] = min(seconds, limits.get("seconds", seconds))
    return parse_config(limits, Budget, f"deadline {deadline!r}")


def _show(answer: Recommendation) -> None:
    from planner.budget import format_amount

    echo_text(str(answer))
    amounts = ", ".join(format_amount(name, value) for name, value in answer.budget.items())
    echo_text(
        f"\nBudget {amounts} on {answer.cluster}; what binds: {', '.join(answer.binding)}. "
        f"Confidence {answer.confidence}: {'; '.join(answer.reasons)}.\n"
    )
    rows = [("recommended", answer.choice), *((r.title, r.option) for r in answer.runners_up)]
    echo_table(
        ["", "shape", "params", "tokens", "rate", "workers", "loss", "time", "dev-h"],
        [_row(title, option) for title, option in rows],
    )
    for runner in answer.runners_up:
        echo_text(f"{runner.title}: gives up {runner.gives_up}; gains {runner.gains}")


def _best_so_far(results: Results) -> None:
    """Print the best trial's loss beside that of knowing only how often each token occurs."""
    losses = [
        (trial.val_loss, trial.trial)
        for trial in results.trials
        if trial.val_loss is not None and trial.state.value == "completed"
    ]
    if not losses:
        return
    loss, name = min(losses)
    known = [t.metrics["unigram_entropy"] for t in results.trials if "unigram_entropy" in t.metrics]
    entropy = f"; the unigram entropy of its corpus is {max(known):.3f}" if known else ""
    echo_text(f"best trial so far: {name} with {loss:.3f} nats per token{entropy}.")


def _warn(answer: Recommendation) -> None:
    own = [w for w in answer.warnings if not w.code.startswith("law:")]
    for warning in own:
        echo_note(f"warning: {warning.message}")
    others = len(answer.warnings) - len(own)
    if others:
        echo_note(
            f"the fit has {others} warnings of its own: planner fit and the report list them."
        )


def _row(title: str, option: Option) -> list[str]:
    return [
        title,
        f"{option.num_layers} x {option.d_model}",
        format_count(option.num_params),
        format_count(option.train_tokens),
        format_number(option.learning_rate),
        str(option.num_workers),
        f"{option.predicted_loss:.3f}",
        format_seconds(option.seconds),
        f"{option.device_hours:.3g}",
    ]
