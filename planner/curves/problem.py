"""What a curve is fitted as: coordinates of order one, and the coefficients they stand for.

One shape for the registered forms of final loss and for the curves of one variable, so that
bootstrap, profile and the check of what a design identifies are written once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from planner.curves.arrays import FloatArray, IntArray
from planner.curves.forms import CurveForm
from planner.curves.points import Points
from planner.curves.robust import Model, jacobian, minimize_robust
from planner.curves.surface import Objective
from planner.curves.surface_hold import surface_hold
from planner.errors import FitError

__all__ = [
    "CurveProblem",
    "form_problem",
    "minimize",
    "require_identified",
]

VANISHING = 1e-10
"""Length of a column of the Jacobian, relative to the longest, at which nothing depends on it."""

SINGULAR = 1e-7
"""Least singular value of the scaled Jacobian, relative to the largest, at which a combination of
coefficients is open."""

Natural = Callable[[FloatArray], FloatArray]
"""theta (b, p) -> coefficients (b, q)."""

Hold = Callable[[int, FloatArray, FloatArray], tuple[FloatArray, FloatArray]]
"""(which coefficient, its coordinates (k,), starts theta (s, k, p)) -> best theta (k, p) and
objective (k,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveProblem:
    """What is minimised: coordinates theta of order one, and the coefficients they stand for."""

    names: tuple[str, ...]
    model: Model
    target: FloatArray
    natural: Natural
    delta: float | None = None
    """Huber's; absent means a multiple of the deviation of the residuals themselves."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Where a coefficient still matters: an interval that reaches beyond is open at that end."""
    group: IntArray | None = None
    """Rows with one number err together and are resampled together, shape (n,)."""
    slopes: Model | None = None
    hold: Hold | None = None
    """A better search with one coefficient held, where the form has one (`surface_hold`)."""

    @property
    def num_independent(self) -> int:
        """Rows, or groups of them, that err on their own."""
        return self.target.size if self.group is None else np.unique(self.group).size


def form_problem(
    form: CurveForm, points: Points, objective: Objective, ranges: Mapping[str, tuple[float, float]]
) -> tuple[CurveProblem, FloatArray]:
    """Return a registered form on these rows as a problem, and theta: its optimum, then its starts.

    The form must have coordinates (`decode` and `starts`).
    """
    decode, starts = form.decode, form.starts
    if decode is None or starts is None:
        raise AssertionError(f"form {form.name} has no coordinates to profile")
    columns = points.covariates()

    def model(theta: FloatArray) -> FloatArray:
        value = form.predict(decode(theta, points), columns)
        return np.asarray(np.log(value)) if objective.is_log else value

    problem = CurveProblem(
        names=form.coefficients,
        model=model,
        target=np.log(points.loss) if objective.is_log else points.loss,
        natural=lambda theta: decode(theta, points),
        delta=objective.delta,
        ranges=ranges,
        group=points.run,
        hold=None
        if form.restriction is None
        else surface_hold(points, objective, form.restriction),
    )
    begin = starts(points)
    theta, value = minimize(problem, begin, np.ones((len(begin), len(points))), objective.delta)
    return problem, np.concatenate([theta[[value.argmin()]], begin])


def minimize(
    problem: CurveProblem, theta: FloatArray, weights: FloatArray, delta: float
) -> tuple[FloatArray, FloatArray]:
    """Return theta (b, p) and the objective (b,) from starts theta under weights (b, n)."""
    return minimize_robust(
        problem.model, problem.target, theta, weights, delta=delta, slopes=problem.slopes
    )


def require_identified(problem: CurveProblem, theta: FloatArray) -> None:
    """Refuse a design whose rows cannot tell some coefficients apart, whatever these are.

    At each row of theta (the optimum first, then the starts) the Jacobian's columns are scaled to
    one length. A design that is singular at every one of them is refused; one that is so at the
    optimum alone has a flat direction there, which an open interval says.

    Raises:
        FitError: Naming the coefficients.
    """
    step = _open_direction(problem, theta[0])
    if step is None or any(_open_direction(problem, row) is None for row in theta[1:]):
        return
    before, after = (problem.natural(theta[:1] + sign * step)[0] for sign in (-1, 1))
    moved = np.abs(after - before) / np.maximum(np.abs(after + before), 1e-300)
    names = [n for n, m in zip(problem.names, moved, strict=True) if m > 0.1 * moved.max()]
    raise FitError(
        f"these rows do not identify {', '.join(names)}: other values fit exactly as well.",
        hint="Vary what they multiply: add trainings that differ in only one of these respects.",
    )


def _open_direction(problem: CurveProblem, theta: FloatArray) -> FloatArray | None:
    """Return a small step of theta that changes no prediction, or None where every one does."""
    slopes = problem.slopes or (lambda at: jacobian(problem.model, at))
    matrix = slopes(theta[None])[0]
    lengths = np.linalg.norm(matrix, axis=0)
    alive = lengths > VANISHING * lengths.max()
    if not alive.all():
        return np.asarray(1e-3 * ~alive)
    _, singular, rows = np.linalg.svd(matrix / lengths, full_matrices=False)
    if singular[-1] >= SINGULAR * singular[0]:
        return None
    step = rows[-1] / lengths
    return np.asarray(1e-3 * step / np.abs(step).max())
