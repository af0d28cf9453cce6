"""`planner fit`: a run or a table of finished trainings to a scaling law."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.output import echo_json, echo_note, echo_table, echo_text, plain

if TYPE_CHECKING:
    from planner.curves import ScalingLaw, Suggestion

__all__ = ["command"]


@click.command()
@click.argument("table")
@click.option("--form", default="mixture", show_default=True, help="mixture, or one curve form.")
@click.option("--objective", default="huber_log", show_default=True, help="What is summed.")
@click.option("--map", "mappings", multiple=True, help="QUANTITY=COLUMN, e.g. loss=val_loss.")
@click.option("--out", type=click.Path(path_type=Path), help="Where laws.json is written.")
@click.option("--level", default=0.9, show_default=True, help="Of the intervals.")
@click.option("--draws", default=1000, show_default=True, help="Resamplings behind the intervals.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--suggest", "num_suggested", type=click.IntRange(min=1), help="Next trials to run.")
@click.option("--pilot-budget", help="What the suggested trials may cost, e.g. 1e20flops.")
@click.option("--target", help="Training that they should inform, e.g. 1e22flops.")
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    help="Folder of the figures; default: plots beside laws.json.",
)
@click.option("--no-plots", is_flag=True, help="Draw no figures.")
@click.option("--runs", type=click.Path(path_type=Path), help="Folder of runs.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document: the law.")
def command(
    table: str,
    form: str,
    objective: str,
    mappings: tuple[str, ...],
    out: Path | None,
    level: float,
    draws: int,
    seed: int,
    num_suggested: int | None,
    pilot_budget: str | None,
    target: str | None,
    plots: Path | None,
    no_plots: bool,
    runs: Path | None,
    as_json: bool,
) -> None:
    """Fit scaling curves to a run, a CSV or a Parquet file.

    TABLE needs the columns num_params, num_tokens and loss; those of a run are understood.

    \b
    Examples:
      planner fit quickstart
      planner fit losses.csv --map loss=val_loss --out laws.json
      planner fit losses.csv --suggest 5 --pilot-budget 1e20flops --target 1e22flops
    """  # noqa: D301
    from planner.cli.places import column_map, run_or_file, written
    from planner.curves import best_sizes, fit, read_points

    pilot_flops = _flops(pilot_budget, "--pilot-budget", num_suggested)
    target_flops = _flops(target, "--target", num_suggested)
    source = run_or_file(table, runs)
    points = read_points(source, column_map(mappings))
    law = fit(points, form=form, objective=objective, num_bootstraps=draws, level=level, seed=seed)
    path = out if out is not None else _default_path(source)
    with written(path, "--out"):
        law.save(path)
    suggestion = None
    if num_suggested is not None:
        suggestion = _suggest(law, num_suggested, pilot_flops, target_flops)
    figures: list[Path] = []
    if not no_plots:
        from planner.report.law_figures import write_law_plots  # loads matplotlib

        with written(plots or path.parent / "plots", "--plots, or give --no-plots") as folder:
            figures = write_law_plots(law, points, folder)
    if as_json:
        names = [str(figure) for figure in figures]
        echo_json(
            {"path": str(path), "plots": names, "law": _without_draws(law),
             "best_sizes": best_sizes(law), "suggestion": suggestion}
        )  # fmt: skip
    else:
        _echo_law(law)
        if suggestion is not None:
            _echo_suggestion(suggestion)
        echo_note(f"wrote {path}")
        for figure in figures:
            echo_note(f"wrote {figure}")


def _without_draws(law: ScalingLaw) -> dict[str, Any]:
    document: dict[str, Any] = plain(law)
    for component in document["components"]:
        del component["draws"]
    return document


def _default_path(table: Path) -> Path:
    return (table if table.is_dir() else table.parent) / "laws.json"


def _suggest(
    law: ScalingLaw, num_trials: int, pilot_flops: float | None, target_flops: float | None
) -> Suggestion:
    from planner.curves import suggest

    top = law.fitted_range.train_flops[1]
    pilot = top if pilot_flops is None else pilot_flops
    return suggest(law, target_flops or 10.0 * max(top, pilot), pilot, num_trials)


def _flops(text: str | None, option: str, num_suggested: int | None) -> float | None:
    from planner.errors import ConfigError
    from planner.units import parse_budget

    if text is None:
        return None
    if num_suggested is None:
        raise ConfigError(f"{option} is of the trials that --suggest N asks for.")
    amounts = parse_budget(text)
    if set(amounts) != {"flops"}:
        raise ConfigError(f"{option} is an amount of FLOPs, e.g. 1e20flops: got {text!r}.")
    return amounts["flops"]


def _echo_law(law: ScalingLaw) -> None:
    from planner.curves import curve_forms
    from planner.units import format_count, format_flops

    forms = curve_forms()
    lead = law.components[0]
    dropped = ", ".join(f"{num} {why}" for why, num in law.dropped.items())
    echo_text(f"{forms[lead.form].equation}  ({lead.form})")
    echo_text(f"{law.num_rows} trainings" + (f"; left out: {dropped}" if dropped else ""))
    r = law.fitted_range
    echo_text(
        f"{format_count(r.num_params[0])} to {format_count(r.num_params[1])} parameters, "
        f"{format_count(r.num_tokens[0])} to {format_count(r.num_tokens[1])} tokens, "
        f"up to {format_flops(r.train_flops[1])} ({law.flops_convention})"
    )
    rows = [
        [
            c.name,
            f"{c.value:.4g}",
            "unbounded" if c.lower is None else f"{c.lower:.4g}",
            "unbounded" if c.upper is None else f"{c.upper:.4g}",
        ]
        for c in law.coefficients
    ]
    share = f"{100 * law.level:g} %"
    echo_table(("coefficient", "value", f"lower {share}", f"upper {share}"), rows)
    if law.backtests:
        errors = [
            [
                b.form,
                f"{b.flops_ratio:.1f}x",
                str(b.num_train),
                str(b.num_test),
                f"{100 * b.median_error_fraction:.2f} %",
            ]
            for b in law.backtests
        ]
        echo_table(("back-test of", "beyond by", "fitted", "scored", "error"), errors)
    weights = [[c.form, f"{100 * c.weight:.0f} %"] for c in law.components]
    if len(weights) > 1:
        echo_table(("form", "weight"), weights)
    _echo_best_sizes(law)
    for warning in law.warnings:
        echo_note(f"warning: {warning.code}: {warning.message}")


def _echo_best_sizes(law: ScalingLaw) -> None:
    from planner.curves import best_sizes
    from planner.units import format_count, format_flops

    sizes, rows = best_sizes(law), []
    for row in sizes:
        cells = [row.exponent, row.exponent_lower, row.exponent_upper]
        counts = [row.num_params, row.num_params_lower, row.num_params_upper]
        if row.refusal is None:
            texts = ["" if value is None else f"{value:.3f}" for value in cells]
            texts += ["" if value is None else format_count(value) for value in counts]
            rows.append([row.method, *texts])
    at = format_flops(sizes[0].train_flops)
    echo_table(
        ("best size by", "exponent", "lower", "upper", f"parameters at {at}", "lower", "upper"),
        rows,
    )
    for row in sizes:
        if row.refusal is not None:
            echo_text(f"{row.method}: {row.refusal}")


def _echo_suggestion(suggestion: Suggestion) -> None:
    from planner.units import format_count, format_flops

    rows = [
        [
            format_count(t.num_params),
            format_count(t.num_tokens),
            format_flops(t.train_flops),
            f"{100 * t.variance_reduction_fraction:.0f} %",
        ]
        for t in suggestion.trials
    ]
    echo_text(f"next trials for a training of {format_flops(suggestion.target_flops)}:")
    echo_table(("parameters", "tokens", "compute", "removes of the spread"), rows)
    echo_text(
        f"spread of log size {suggestion.size_deviation_before:.2f} -> "
        f"{suggestion.size_deviation_after:.2f}, of log loss "
        f"{suggestion.loss_deviation_before:.4f} -> {suggestion.loss_deviation_after:.4f}"
    )
