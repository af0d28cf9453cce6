"""`fit`: a table of finished trainings to a scaling law with honest intervals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from planner.curves.arrays import FloatArray
from planner.curves.checklist import fill_checklist
from planner.curves.checks import require_level
from planner.curves.diagnosis import Evidence, diagnose
from planner.curves.forms import CurveForm, find_form
from planner.curves.intervals import bootstrap_coefficients, expanded_tail, has_flat_direction
from planner.curves.isoflop import isoflop_profiles
from planner.curves.law import (
    Backtest,
    Coefficient,
    Component,
    FittedRange,
    ScalingLaw,
)
from planner.curves.methods import size_frontiers
from planner.curves.mixture import (
    MIXTURE_FORMS,
    NOISE_FLOOR,
    backtest,
    draw_params,
    extrapolation_error,
    mixture_weights,
)
from planner.curves.points import Points, count_distinct
from planner.curves.problem import form_problem, require_identified
from planner.curves.profiles import profile_coefficients
from planner.curves.robust import robust_deviation
from planner.curves.surface import OBJECTIVES, Objective
from planner.curves.tables import points_from_table
from planner.errors import ConfigError, FitError, NotFoundError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from planner.results import Results

__all__ = ["fit"]

MIN_DRAWS = 50

MIXTURE = "mixture"

NEGLIGIBLE_ASYMPTOTE = 1e-3
"""An irreducible loss below this share of the least loss cannot be told from none."""

FLAT_ASYMPTOTE = 0.2
"""An interval of the irreducible loss wider than this share of the least loss says that E trades
off against A and B, and a bootstrap then covers too little."""

IDENTIFIED = {
    "alpha": (0.02, 1.6),
    "beta": (0.02, 1.6),
    "R_D": (0.3, 3000.0),
    "R_N": (0.3, 3000.0),
    "A": (-np.inf, 1e14),
    "B": (-np.inf, 1e16),
}
"""Where a coefficient stops mattering: an interval that reaches there is open at that end."""

SIZE_AND_TOKENS = ("num_params", "num_tokens")
"""What every form needs; a form that needs more is checked for what its further columns identify."""

MAX_ROWS = 10_000

COLLINEAR = 0.999
"""|correlation| of log N and log D from which A and B cannot be told apart."""


def fit(
    table: Results | pd.DataFrame | Points,
    *,
    form: str = "mixture",
    objective: str = "huber_log",
    num_bootstraps: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> ScalingLaw:
    """Fit a scaling law to final losses.

    Args:
        table: The results of a sweep, a DataFrame with num_params, num_tokens and loss (names of
            a run's results are understood), or `Points`.
        form: A name of `curve_forms()`, or "mixture": several forms weighted by how well each
            predicts the larger trainings of the table from the smaller ones.
        objective: A name of `OBJECTIVES`.
        num_bootstraps: Resamplings behind the intervals.
        level: Of the intervals, in (0, 1).
        seed: Of the resampling; the fit itself uses no chance.

    Raises:
        ConfigError: The table or an argument is wrong.
        FitError: The table cannot identify the law; the message says which runs are missing.
    """
    require_level(level)
    if seed < 0:
        raise ConfigError(f"seed must not be negative: got {seed}.")
    if num_bootstraps < 10:
        raise ConfigError(f"num_bootstraps must be at least 10: got {num_bootstraps}.")
    if objective not in OBJECTIVES:
        raise NotFoundError(f"no objective {objective!r}. {did_you_mean(objective, OBJECTIVES)}")
    points = _thinned(_points_of(table))
    goal = OBJECTIVES[objective]
    forms = _usable_forms(points, form, goal)
    backtests = backtest(points, forms, goal)
    shares = mixture_weights(forms, backtests)
    components = [
        _component(points, item, goal, float(share), num_bootstraps, seed)
        for item, share in zip(forms, shares, strict=True)
    ]
    components.sort(key=lambda component: -component.weight)
    return _law(points, form, tuple(components), backtests, goal, level, seed)


def _points_of(table: Results | pd.DataFrame | Points) -> Points:
    if isinstance(table, Points):
        return table
    from planner.results import Results  # loads pandas, which a table of arrays does not need

    if not isinstance(table, Results):
        return points_from_table(table)
    copied = {copy.trial for copy in table.copies}
    return points_from_table(table.to_frame(), reports=table.curves_frame(), copied=copied)


def _thinned(points: Points) -> Points:
    """Return an even sample of a very large table; the other rows are counted.

    The error of the form is by then far above the error of sampling.
    """
    if len(points) <= MAX_ROWS:
        return points
    mask = np.zeros(len(points), dtype=bool)
    order = np.argsort(points.compute_flops, kind="stable")
    mask[order[np.linspace(0, len(points) - 1, MAX_ROWS).round().astype(np.int64)]] = True
    return points.where(mask, reason=f"beyond {MAX_ROWS} rows an even sample is fitted")


def _usable_forms(points: Points, name: str, objective: Objective) -> list[CurveForm]:
    """Return the forms to fit: the one named, or those of the mixture that the rows allow."""
    if name != MIXTURE:
        form = find_form(name)
        require_identifiable(points, form)
        if len(form.columns) > len(SIZE_AND_TOKENS) and form.decode is not None:
            require_identified(*form_problem(form, points, objective, IDENTIFIED))
        return [form]
    require_identifiable(points, find_form(MIXTURE_FORMS[0]))
    forms = [find_form(item) for item in MIXTURE_FORMS]
    return [form for form in forms if len(points) >= form.min_rows]


def require_identifiable(points: Points, form: CurveForm) -> None:
    """Refuse data that cannot identify the form.

    Raises:
        FitError: Too few rows, sizes or token counts; N and D in lockstep; a column is missing.
    """
    for column in form.columns:
        if getattr(points, column) is None:
            raise FitError(f"form {form.name} needs the column {column}, which the table lacks.")
        num_absent = int(np.isnan(getattr(points, column)).sum())
        if num_absent:
            raise FitError(
                f"form {form.name} needs {column} in every row: {num_absent} of {len(points)} lack it.",
                hint="Fill it in, or leave these rows out of the table.",
            )
    if len(points) < form.min_rows:
        raise FitError(
            f"form {form.name} has {len(form.coefficients)} coefficients and needs at least "
            f"{form.min_rows} finished trainings: got {len(points)}{_dropped_text(points)}.",
            hint="Add trainings of other sizes and lengths.",
        )
    for name, least in form.min_distinct.items():
        values = getattr(points, name)
        # A sparsity of 0 has no logarithm; shares are told apart by what is left.
        num = count_distinct(1 - values if name == "sparsity_fraction" else values)
        if num < least:
            raise FitError(
                f"form {form.name} needs at least {least} distinct {name}: got {num} "
                f"(values within 2 % count as one){_dropped_text(points)}.",
                hint=f"Add trainings with other {name}.",
            )
    if "num_params" not in form.min_distinct:
        return
    correlation = np.corrcoef(np.log(points.num_params), np.log(points.num_tokens))[0, 1]
    if abs(correlation) > COLLINEAR:
        raise FitError(
            f"num_params and num_tokens move in lockstep (correlation of logs {correlation:.4f}): "
            f"what each contributes to the loss is not identified.",
            hint="Train some sizes at other numbers of tokens per parameter.",
        )


def _dropped_text(points: Points) -> str:
    if not points.dropped:
        return ""
    return " (left out: " + ", ".join(f"{n} {why}" for why, n in points.dropped.items()) + ")"


def _component(
    points: Points, form: CurveForm, objective: Objective, share: float, num_draws: int, seed: int
) -> Component:
    """Fit a form, and draw it as often as its share of the mixture will use."""
    params, value = form.fit(points, objective, None)
    num = max(math.ceil(share * num_draws), MIN_DRAWS)
    return Component(
        form=form.name,
        weight=share,
        params=params[0],
        draws=draw_params(form, points, objective, num, seed),
        objective_value=float(value[0]),
    )


def _law(
    points: Points,
    form: str,
    components: tuple[Component, ...],
    backtests: tuple[Backtest, ...],
    objective: Objective,
    level: float,
    seed: int,
) -> ScalingLaw:
    from planner import __version__

    lead = components[0]
    columns = points.covariates()
    residual = sum(c.weight * c.log_loss(columns) for c in components) - np.log(points.loss)
    profiles = isoflop_profiles(points)
    frontiers, refusals = size_frontiers(points, profiles)
    evidence = Evidence(
        points=points,
        components=components,
        residual=residual,
        noise=max(robust_deviation(residual, len(lead.params)), NOISE_FLOOR),
        backtests=backtests,
        profiles=profiles,
        frontiers=frontiers,
    )
    coefficients = _coefficients(lead, points, objective, level)
    return ScalingLaw(
        form=form,
        components=components,
        coefficients=coefficients,
        objective=objective.name,
        objective_value=lead.objective_value,
        num_rows=len(points),
        dropped=dict(points.dropped),
        warnings=diagnose(evidence),
        fitted_range=FittedRange(
            num_params=_range(points.num_params),
            num_tokens=_range(points.num_tokens),
            train_flops=_range(points.compute_flops),
            loss=_range(points.loss),
        ),
        irreducible_loss=coefficients[0],
        noise=evidence.noise,
        extrapolation=extrapolation_error(backtests),
        backtests=backtests,
        profiles=profiles,
        frontiers=frontiers,
        refusals=refusals,
        checklist=fill_checklist(evidence, objective.name, sum(len(c.draws) for c in components)),
        columns=dict(points.columns),
        flops_convention="6 N D" if points.train_flops is None else "column train_flops",
        level=level,
        seed=seed,
        planner_version=__version__,
    )


def _range(values: FloatArray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _coefficients(
    component: Component, points: Points, objective: Objective, level: float
) -> tuple[Coefficient, ...]:
    """Return estimates with bootstrap quantiles, or with profiles where a direction is flat."""
    form = find_form(component.form)
    least = NEGLIGIBLE_ASYMPTOTE * float(points.loss.min())
    ranges = {**IDENTIFIED, "E": (least, np.inf), "e": (least, np.inf)}
    num_runs = len(points) if points.run is None else np.unique(points.run).size
    coefficients = bootstrap_coefficients(
        form.coefficients,
        component.params,
        component.draws,
        level=level,
        tail=0.5 - 0.5 * level
        if form.draw is not None
        else expanded_tail(level, num_runs, len(component.params)),
        ranges=ranges,
    )
    if form.decode is None or not _is_flat(coefficients, float(points.loss.min())):
        return coefficients
    problem, theta = form_problem(form, points, objective, ranges)
    return profile_coefficients(problem, theta[0], level=level, starts=theta[1:])


def _is_flat(coefficients: tuple[Coefficient, ...], least_loss: float) -> bool:
    """Return whether a direction is flat, or the asymptote may be anything."""
    if has_flat_direction(coefficients):
        return True
    widths = [
        c.upper - c.lower for c in coefficients if c.name in ("E", "e") and c.upper and c.lower
    ]
    return any(width > FLAT_ASYMPTOTE * least_loss for width in widths)
