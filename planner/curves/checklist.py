"""The checklist of (Mis)Fitting (Li et al. 2025, arXiv:2502.18969), filled in from the data.

What the table does not say is marked so instead of being assumed.
"""

from __future__ import annotations

import numpy as np

from planner.curves.arrays import FloatArray
from planner.curves.diagnosis import Evidence
from planner.curves.forms import find_form
from planner.curves.law import variables_of
from planner.curves.points import Points, count_distinct

__all__ = ["fill_checklist"]


def _span(values: FloatArray) -> str:
    return f"{np.nanmin(values):.3g} to {np.nanmax(values):.3g}"


def _stated(name: str, values: FloatArray | None) -> str:
    if values is None:
        return "not stated in the table"
    num_absent = int(np.isnan(values).sum())
    return f"{name}: {_span(values)}" + (f"; {num_absent} rows do not say" if num_absent else "")


def _methods(evidence: Evidence) -> list[str]:
    has_surface = find_form(evidence.components[0].form).has_surface_optimum
    return [*(["surface"] if has_surface else []), *evidence.frontiers]


def _schedules(points: Points) -> str:
    if points.schedule is None:
        return "not stated in the table"
    names, counts = np.unique(points.schedule, return_counts=True)
    return ", ".join(f"{n} {name or 'not stated'}" for name, n in zip(names, counts, strict=True))


def fill_checklist(evidence: Evidence, objective: str, num_draws: int) -> dict[str, str]:
    """Return what a reader of a fit asks for, item by item."""
    points = evidence.points
    flops = points.compute_flops
    given = points.columns or {name: name for name in points.covariates()}
    ratio = points.num_tokens / points.num_params

    return {
        "law: forms": ", ".join(f"{c.form} {100 * c.weight:.0f} %" for c in evidence.components),
        "law: variables": ", ".join(variables_of(evidence.components)),
        "set-up: columns given": ", ".join(points.covariates()),
        "law: methods for the best size": ", ".join(_methods(evidence)),
        "set-up: trainings": f"{len(points)} used; left out: "
        + (", ".join(f"{n} {why}" for why, n in points.dropped.items()) or "none"),
        "set-up: sizes": f"{count_distinct(points.num_params)} sizes, {_span(points.num_params)}",
        "set-up: tokens": f"{count_distinct(points.num_tokens)} counts, {_span(points.num_tokens)}",
        "set-up: tokens per parameter": _span(ratio),
        "set-up: compute": _span(flops),
        "set-up: learning rate": _stated("learning_rate", points.learning_rate),
        "set-up: tokens per step": _stated("tokens_per_step", points.tokens_per_step),
        "set-up: schedule": _schedules(points),
        "set-up: warm-up": _stated("warmup_fraction", points.warmup_fraction),
        "data: repeated tokens": _stated("unique_tokens", points.unique_tokens),
        "collection: loss": f"column {given.get('loss', 'loss')}, taken as nats per token, final",
        "collection: parameters counted": f"column {given.get('num_params', 'num_params')}",
        "collection: compute counted": "6 N D"
        if points.train_flops is None
        else "column train_flops",
        "collection: checkpoints": "final losses, one row per training"
        if points.run is None
        else f"{points.num_continued} rows share a run with another",
        "collection: losses during training": "none"
        if points.stable is None
        else f"{points.stable}",
        "fit: objective": objective,
        "fit: optimiser": "damped Newton from a global grid by variable projection for the reference law; "
        "Levenberg-Marquardt from several starts for forms beyond it",
        "fit: resampling": f"{num_draws} draws",
        "fit: back-tests": f"{len({b.train_max_flops for b in evidence.backtests})} cuts",
    }
