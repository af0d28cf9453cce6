"""Curves of one variable: error, accuracy or loss against examples, steps or compute.

M1 to M4 of Alabdulmohsin et al. 2022 (arXiv:2209.06640) and the broken neural scaling law of
Caballero et al. 2022 (arXiv:2210.14891). All are fitted to log y, by least squares from a fixed set
of starts in log x scaled to its range, so that no unit of x matters, then by Huber's loss from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.curves.arrays import FloatArray
from planner.curves.intervals import DEFAULT_DRAWS, CurveFit, fit_curve
from planner.curves.law import Coefficient
from planner.curves.problem import CurveProblem
from planner.errors import ConfigError, FitError, NotFoundError, did_you_mean

__all__ = ["LearningCurve", "fit_learning_curve", "learning_curve_forms"]

NEWTON_STEPS = 8
"""Of the inversion of M4: it has converged to rounding by then."""

NEGLIGIBLE = 1e-3
"""A limit below this share of the least y cannot be told from none."""

HELD_BACK = 0.3
"""Share of the points, the last ones, that choose between forms."""

Model = Callable[[FloatArray, FloatArray], FloatArray]
"""(theta (b, p), t (n,)) -> log y (b, n); t is log x, zero at the first point, one per decade."""


@dataclass(frozen=True, slots=True)
class _Form:
    name: str
    equation: str
    names: tuple[str, ...]
    model: Model
    starts: Callable[[FloatArray, FloatArray], FloatArray]
    natural: Callable[[FloatArray, float], FloatArray]
    """(theta (b, p), log of the first x) -> coefficients of the equation (b, p)."""
    slopes: Model
    """(theta (b, p), t (n,)) -> d log y / d theta, shape (b, n, p)."""

    @property
    def min_points(self) -> int:
        """Fewest distinct x that are fitted: two more than there are coefficients."""
        return len(self.names) + 2


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
        t = (log_x - self.origin).ravel() / np.log(10.0)
        log_y = _FORMS[self.form].model(self.theta[None], t)[0]
        return np.asarray(np.exp(log_y)).reshape(log_x.shape)


def _power(theta: FloatArray, t: FloatArray) -> FloatArray:
    """M1: y = a x^-b."""
    return np.asarray(theta[:, :1] - np.exp(theta[:, 1:2]) * t)


def _power_limit(theta: FloatArray, t: FloatArray) -> FloatArray:
    """M2: y = a x^-b + c."""
    return np.asarray(np.logaddexp(_power(theta, t), theta[:, 2:3]))


def _shifted(theta: FloatArray, t: FloatArray) -> FloatArray:
    """M3: y = a (x^-1 + d)^b + c."""
    inner = np.logaddexp(-np.log(10.0) * t, theta[:, 3:4])
    slope = np.exp(theta[:, 1:2]) / np.log(10.0)
    return np.asarray(np.logaddexp(theta[:, :1] + slope * inner, theta[:, 2:3]))


def _saturating(theta: FloatArray, t: FloatArray) -> FloatArray:
    """M4: (y - e) / (e0 - y)^alpha = b x^-c, solved for y.

    With y = e + (e0 - e) z and z = 1/(1 + exp(-u)):
    log z - alpha log(1 - z) = g = log b - c log x + (alpha - 1) log(e0 - e), monotone in u.
    theta = (log b, log c, log e, log(e0 - e), log alpha).
    """
    low, _ = _invert_saturating(theta, t)
    return np.asarray(np.logaddexp(theta[:, 2:3], theta[:, 3:4] - low))


def _invert_saturating(theta: FloatArray, t: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return -log z and -log(1 - z), shape (b, n), by Newton's method on u."""
    alpha = np.exp(theta[:, 4:5])
    g = theta[:, :1] - np.exp(theta[:, 1:2]) * t + (alpha - 1.0) * theta[:, 3:4]
    u = np.where(g < 0, g, g / alpha)
    for _ in range(NEWTON_STEPS):
        high = np.logaddexp(0.0, u)
        low = high - u
        z = np.exp(-low)
        u = u - (alpha * high - low - g) / (1.0 - z + alpha * z)
    high = np.logaddexp(0.0, u)
    return high - u, high


def _saturating_slopes(theta: FloatArray, t: FloatArray) -> FloatArray:
    """Return d log y / d theta of M4 by the implicit function theorem, shape (b, n, 5)."""
    low, high = _invert_saturating(theta, t)
    z, rest = np.exp(-low), np.exp(-high)
    alpha, rate = np.exp(theta[:, 4:5]), np.exp(theta[:, 1:2])
    share = 1.0 / (1.0 + np.exp(theta[:, 2:3] - theta[:, 3:4] + low))
    along = share * rest / (rest + alpha * z)
    return np.stack(
        [
            along,
            -along * rate * t,
            1.0 - share,
            along * (alpha - 1.0) + share,
            along * alpha * (theta[:, 3:4] - high),
        ],
        axis=2,
    )


def _broken(theta: FloatArray, t: FloatArray) -> FloatArray:
    """BNSL, one break: y = a + b x^-c0 (1 + (x/d)^(1/f))^(-c1 f); c1 may be negative.

    theta = (log b, c0, log a, c1, log d in decades, log f).
    """
    f = np.exp(theta[:, 5:6])
    bend = f * np.logaddexp(0.0, np.log(10.0) * (t - theta[:, 4:5]) / f) / np.log(10.0)
    return np.asarray(
        np.logaddexp(theta[:, :1] - theta[:, 1:2] * t - theta[:, 3:4] * bend, theta[:, 2:3])
    )


def _power_slopes(theta: FloatArray, t: FloatArray) -> FloatArray:
    fall = -np.exp(theta[:, 1:2]) * t
    return np.stack([np.ones_like(fall), fall], axis=2)


def _limit_slopes(theta: FloatArray, t: FloatArray) -> FloatArray:
    share = np.exp(_power(theta, t) - _power_limit(theta, t))
    return np.stack([share, -share * np.exp(theta[:, 1:2]) * t, 1.0 - share], axis=2)


def _shifted_slopes(theta: FloatArray, t: FloatArray) -> FloatArray:
    inner = np.logaddexp(-np.log(10.0) * t, theta[:, 3:4])
    slope = np.exp(theta[:, 1:2]) / np.log(10.0)
    power = theta[:, :1] + slope * inner
    share = np.exp(power - np.logaddexp(power, theta[:, 2:3]))
    along = share * slope
    return np.stack(
        [share, along * inner, 1.0 - share, along * np.exp(theta[:, 3:4] - inner)], axis=2
    )


def _broken_slopes(theta: FloatArray, t: FloatArray) -> FloatArray:
    f, extra = np.exp(theta[:, 5:6]), theta[:, 3:4]
    past = np.log(10.0) * (t - theta[:, 4:5]) / f
    soft = np.logaddexp(0.0, past)
    bend, turned = f * soft / np.log(10.0), np.exp(past - soft)
    power = theta[:, :1] - theta[:, 1:2] * t - extra * bend
    share = np.exp(power - np.logaddexp(power, theta[:, 2:3]))
    along_width = f * (soft - past * turned) / np.log(10.0)
    return np.stack(
        [
            share,
            -share * t,
            1.0 - share,
            -share * bend,
            share * extra * turned,
            -share * extra * along_width,
        ],
        axis=2,
    )


def _line(t: FloatArray, log_y: FloatArray) -> tuple[float, float]:
    """Return log y at the first x and the fall per decade, at least a hundredth."""
    slope, intercept = np.polyfit(t, log_y, 1)
    return float(intercept), float(max(-slope, 0.01))


def _power_starts(t: FloatArray, log_y: FloatArray) -> FloatArray:
    a, b = _line(t, log_y)
    return np.array([[a, np.log(b)]])


def _limit_starts(t: FloatArray, log_y: FloatArray) -> FloatArray:
    a, b = _line(t, log_y)
    least = log_y.min()
    return np.array(
        [
            [a, np.log(b * f), least + np.log(share)]
            for f, share in ((1.2, 0.3), (1.5, 0.6), (2.5, 0.9))
        ]
    )


def _shifted_starts(t: FloatArray, log_y: FloatArray) -> FloatArray:
    shifts = np.array([-8.0, -3.0, -1.0]) * max(float(t[-1]), 0.3)
    base = _limit_starts(t, log_y)
    return np.concatenate([np.column_stack([base, np.full(len(base), s)]) for s in shifts[:2]])


def _saturating_starts(t: FloatArray, log_y: FloatArray) -> FloatArray:
    top, least = float(np.exp(log_y.max())), float(np.exp(log_y.min()))
    _, b = _line(t, log_y)
    rows = []
    for share, excess, alpha in (
        (0.2, 0.01, 0.5),
        (0.6, 0.05, 1.0),
        (0.8, 0.3, 2.0),
        (0.3, 0.02, 1.5),
    ):
        e, e0 = share * least, top * (1 + excess)
        log_b = np.log(top - e) - alpha * np.log(e0 - top)
        rows.append([log_b, np.log(2.5 * b), np.log(e), np.log(e0 - e), np.log(alpha)])
    return np.array(rows)


def _broken_starts(t: FloatArray, log_y: FloatArray) -> FloatArray:
    a, b = _line(t, log_y)
    least, end = log_y.min(), float(t[-1])
    return np.array(
        [[a, first * b, least + np.log(share), extra * b, place * end, np.log(width)]
         for first, extra in ((0.3, 1.0), (1.5, -0.8))
         for place in (0.3, 0.7)
         for share, width in ((0.05, 0.5), (0.5, 1.0))]
    )  # fmt: skip


LOG_10 = float(np.log(10.0))


def _power_coefficients(theta: FloatArray, origin: float) -> FloatArray:
    """Return a and b of a x^-b, and e to the further coordinates."""
    b = np.exp(theta[:, 1]) / LOG_10
    return np.column_stack([np.exp(theta[:, 0] + b * origin), b, np.exp(theta[:, 2:])])


def _shifted_coefficients(theta: FloatArray, origin: float) -> FloatArray:
    rows = _power_coefficients(theta, origin)
    rows[:, 3] *= np.exp(-origin)
    return rows


def _saturating_coefficients(theta: FloatArray, origin: float) -> FloatArray:
    b, c, e, rise, alpha = _power_coefficients(theta, origin).T
    return np.stack([b, c, e, e + rise, alpha], axis=1)


def _broken_coefficients(theta: FloatArray, origin: float) -> FloatArray:
    c0, c1 = theta[:, 1] / LOG_10, theta[:, 3] / LOG_10
    b = np.exp(theta[:, 0] + c0 * origin)
    d = np.exp(origin + LOG_10 * theta[:, 4])
    return np.stack([np.exp(theta[:, 2]), b, c0, c1, d, np.exp(theta[:, 5])], axis=1)


_FORMS = {
    form.name: form
    for form in (
        _Form(
            "m1",
            "y = a x^-b",
            ("a", "b"),
            _power,
            _power_starts,
            _power_coefficients,
            _power_slopes,
        ),
        _Form(
            "m2",
            "y = a x^-b + c",
            ("a", "b", "c"),
            _power_limit,
            _limit_starts,
            _power_coefficients,
            _limit_slopes,
        ),
        _Form(
            "m3",
            "y = a (1/x + d)^b + c",
            ("a", "b", "c", "d"),
            _shifted,
            _shifted_starts,
            _shifted_coefficients,
            _shifted_slopes,
        ),
        _Form(
            "m4",
            "(y - e)/(e0 - y)^alpha = b x^-c",
            ("b", "c", "e", "e0", "alpha"),
            _saturating,
            _saturating_starts,
            _saturating_coefficients,
            _saturating_slopes,
        ),
        _Form(
            "bnsl",
            "y = a + b x^-c0 (1 + (x/d)^(1/f))^(-c1 f)",
            ("a", "b", "c0", "c1", "d", "f"),
            _broken,
            _broken_starts,
            _broken_coefficients,
            _broken_slopes,
        ),
    )
}


def learning_curve_forms() -> dict[str, str]:
    """Return the equation of every form by name."""
    return {name: form.equation for name, form in _FORMS.items()}


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
        ConfigError: Shapes differ, or a value is not positive and finite.
        FitError: Fewer distinct x than coefficients plus two.
    """
    log_x, log_y = _ordered_logs(x, y)
    if form != "best" and form not in _FORMS:
        raise NotFoundError(f"no learning curve {form!r}. {did_you_mean(form, [*_FORMS, 'best'])}")
    origin = float(log_x[0])
    t = (log_x - origin) / np.log(10.0)
    num = np.unique(t).size
    if form != "best" and num < _FORMS[form].min_points:
        raise FitError(
            f"form {form} has {len(_FORMS[form].names)} coefficients and needs "
            f"{_FORMS[form].min_points} distinct x: got {num}."
        )
    errors = _held_back_errors(t, log_y) if form == "best" else {}
    name = min(errors, key=lambda key: errors[key]) if errors else form
    fitted = _fit(
        _FORMS[name], t, log_y, origin, num_bootstraps=num_bootstraps, level=level, seed=seed
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
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if xs.ndim != 1 or xs.shape != ys.shape:
        raise ConfigError(
            f"x and y must be lists of one length: got shapes {xs.shape}, {ys.shape}."
        )
    if not (np.isfinite(xs) & (xs > 0) & np.isfinite(ys) & (ys > 0)).all():
        raise ConfigError(
            "x and y must be positive and finite.", hint="Drop diverged points first."
        )
    order = np.argsort(xs, kind="stable")
    return np.log(xs[order]), np.log(ys[order])


def _held_back_errors(t: FloatArray, log_y: FloatArray) -> dict[str, float]:
    num = np.unique(t).size
    kept = int(np.ceil((1 - HELD_BACK) * t.size))
    errors = {}
    for name, form in _FORMS.items():
        if np.unique(t[:kept]).size < form.min_points:
            continue
        theta = _fit(form, t[:kept], log_y[:kept], 0.0).theta
        off = form.model(theta[None], t[kept:])[0] - log_y[kept:]
        errors[name] = float(np.median(np.abs(np.expm1(off))))
    if not errors:
        raise FitError(f"a learning curve needs at least 6 distinct x to choose a form: got {num}.")
    return errors


def _fit(
    form: _Form,
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
