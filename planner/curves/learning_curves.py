"""Curves of one variable: error, accuracy or loss against examples, steps or compute.

The forms of `learning_models` are fitted to log y, by least squares from a fixed set
of starts in log x scaled to its range, so that no unit of x matters, then by Huber's loss from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.curves.arrays import FloatArray
from planner.curves.checks import positive_lists
from planner.curves.intervals import DEFAULT_DRAWS, CurveFit, fit_curve
from planner.curves.law import Coefficient
from planner.curves.learning_models import FORMS, LOG_10, LearningForm
from planner.curves.problem import CurveProblem
from planner.errors import FitError, NotFoundError, did_you_mean

__all__ = ["LearningCurve", "fit_learning_curve", "learning_curve_forms"]

NEGLIGIBLE = 1e-3
"""A limit below this share of the least y cannot be told from none."""

HELD_BACK = 0.3
"""Share of the points, the last ones, that choose between forms."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearningCurve:
    """A fitted curve of one variable."""

    form: str
    theta: FloatArray
    origin: float
    """log of the first x."""
    objective_value: float
    """Sum of squared residuals of log y."""
    num_points: int
    noise: float
    """Standard deviation of log y around the curve."""
    coefficients: tuple[Coefficient, ...]
    """Those of the equation, with intervals."""
    errors: dict[str, float]
    """Median relative error of each form on the held-back points, where a form was chosen."""

    def predict(self, x: ArrayLike) -> FloatArray:
        """Return y at x."""
        log_x = np.log(np.asarray(x, dtype=np.float64))
        t = (log_x - self.origin).ravel() / LOG_10
        log_y = FORMS[self.form].model(self.theta[None], t)[0]
        return np.asarray(np.exp(log_y)).reshape(log_x.shape)


def learning_curve_forms() -> dict[str, str]:
    """Return the equation of every form by name."""
    return {name: form.equation for name, form in FORMS.items()}


def fit_learning_curve(
    x: ArrayLike,
    y: ArrayLike,
    *,
    form: str = "best",
    num_bootstraps: int = DEFAULT_DRAWS,
    level: float = 0.9,
    seed: int = 0,
) -> LearningCurve:
    """Fit a curve of error (or loss, or 1 - accuracy) against what was spent.

    Args:
        x: Examples, steps, tokens or compute, shape (n,), positive, in any order.
        y: Error, shape (n,), positive. For an accuracy give 1 - accuracy.
        form: m1, m2, m3, m4, bnsl, or "best": the form that, fitted to the first 70 % of the
            points, errs least on the others.
        num_bootstraps: Resamplings behind the intervals of the coefficients; 0 makes none.
        level: Of the intervals.
        seed: Of the resampling.

    Raises:
        ConfigError: Shapes differ, a value is not positive and finite, or the level is not in (0, 1).
        NotFoundError: There is no such form.
        FitError: Fewer distinct x than coefficients plus two, or too few to choose a form.
    """
    log_x, log_y = _ordered_logs(x, y)
    if form != "best" and form not in FORMS:
        raise NotFoundError(f"no learning curve {form!r}. {did_you_mean(form, [*FORMS, 'best'])}")
    origin = float(log_x[0])
    t = (log_x - origin) / LOG_10
    num = np.unique(t).size
    if form != "best" and num < FORMS[form].min_points:
        raise FitError(
            f"form {form} has {len(FORMS[form].names)} coefficients and needs "
            f"{FORMS[form].min_points} distinct x: got {num}."
        )
    errors = _held_back_errors(t, log_y) if form == "best" else {}
    name = min(errors, key=lambda key: errors[key]) if errors else form
    fitted = _fit(
        FORMS[name], t, log_y, origin, num_bootstraps=num_bootstraps, level=level, seed=seed
    )
    square = float((fitted.residual**2).sum())
    return LearningCurve(
        form=name,
        theta=fitted.theta,
        origin=origin,
        objective_value=square,
        num_points=int(log_y.size),
        noise=float(np.sqrt(square / max(log_y.size - fitted.theta.size, 1))),
        coefficients=fitted.coefficients,
        errors=errors,
    )


def _ordered_logs(x: ArrayLike, y: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return log x, ascending, and log y."""
    xs, ys = positive_lists(x=x, y=y)
    order = np.argsort(xs, kind="stable")
    return np.log(xs[order]), np.log(ys[order])


def _held_back_errors(t: FloatArray, log_y: FloatArray) -> dict[str, float]:
    kept = int(np.ceil((1 - HELD_BACK) * t.size))
    num = np.unique(t[:kept]).size
    errors = {}
    for name, form in FORMS.items():
        if num < form.min_points:
            continue
        theta = _fit(form, t[:kept], log_y[:kept], 0.0).theta
        off = form.model(theta[None], t[kept:])[0] - log_y[kept:]
        errors[name] = float(np.median(np.abs(np.expm1(off))))
    if not errors:
        least = min(form.min_points for form in FORMS.values())
        raise FitError(
            f"to choose a form, the first {100 * (1 - HELD_BACK):.0f} % of the points must hold at "
            f"least {least} distinct x: got {num}.",
            hint="Measure at more x, or name the form.",
        )
    return errors


def _fit(
    form: LearningForm,
    t: FloatArray,
    log_y: FloatArray,
    origin: float,
    *,
    num_bootstraps: int = 0,
    level: float = 0.9,
    seed: int = 0,
) -> CurveFit:
    least = NEGLIGIBLE * float(np.exp(log_y.min()))
    first, last = np.exp(origin), np.exp(origin + LOG_10 * t[-1])
    problem = CurveProblem(
        names=form.names,
        model=lambda theta: form.model(theta, t),
        target=log_y,
        natural=lambda theta: form.natural(theta, origin),
        ranges={
            ("a" if form.name == "bnsl" else "e" if form.name == "m4" else "c"): (least, np.inf),
            "d": (first, last) if form.name == "bnsl" else (NEGLIGIBLE / last, np.inf),
        },
        slopes=lambda theta: form.slopes(theta, t),
    )
    return fit_curve(
        problem, form.starts(t, log_y), num_bootstraps=num_bootstraps, level=level, seed=seed
    )
