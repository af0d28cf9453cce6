"""The forms of a loss curve: a registry, so that another form is one entry.

A form says what it is, which columns it needs, how it predicts and how it is fitted. Everything
else (bootstrap, back-test, mixture, intervals, JSON) works on any entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from planner.curves.anchored import fit_anchored
from planner.curves.arrays import FloatArray, safe_exp, safe_log
from planner.curves.newton import Restriction
from planner.curves.points import Points
from planner.curves.robust import minimize_robust
from planner.curves.surface import OBJECTIVES, Objective, fit_surface, tied_exponents
from planner.errors import NotFoundError, did_you_mean

__all__ = [
    "CurveForm",
    "Fitted",
    "curve_forms",
    "decode_surface",
    "decode_with_logs",
    "find_form",
    "predict_surface",
    "register",
    "robust_fit",
    "surface_fit",
    "surface_starts",
    "with_tails",
]

Columns = Mapping[str, FloatArray]
Fitted = tuple[FloatArray, FloatArray]
"""Parameters (batch, p) and objective (batch,), one row per row of weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveForm:
    """One law: its equation, what it needs, how it predicts and how it is fitted."""

    name: str
    equation: str
    source: str
    coefficients: tuple[str, ...]
    predict: Callable[[FloatArray, Columns], FloatArray]
    """(params (s, p), columns of shape (k,)) -> loss (s, k)."""
    fit: Callable[[Points, Objective, FloatArray | None], Fitted]
    """(points, objective, weights (batch, n)) -> Fitted. None is one row of ones, fitted from more
    starts."""
    draw: Callable[[Points, int, int], FloatArray] | None = None
    """(points, number of draws, seed) -> params (draws, p), where it is not the bootstrap of
    `fit`."""
    decode: Callable[[FloatArray, Points], FloatArray] | None = None
    """(theta (b, q), points) -> params (b, p), theta free and of order one: what a profile moves
    in. Absent where a prior and not the rows alone decides."""
    starts: Callable[[Points], FloatArray] | None = None
    """points -> theta (b, q), from which the form is fitted."""
    restriction: Restriction | None = None
    """theta to the coordinates of `newton`, where the form is the reference law or a part of it."""
    columns: tuple[str, ...] = ("num_params", "num_tokens")
    min_distinct: Mapping[str, int] = field(
        default_factory=lambda: {"num_params": 3, "num_tokens": 3}
    )
    """Fewest distinct values of a column with which anything is identified."""
    has_surface_optimum: bool = True
    """The compute-optimal size is that of A/N^alpha + B/D^beta, in closed form."""

    @property
    def min_rows(self) -> int:
        """Fewest rows that are fitted: two more than there are coefficients."""
        return len(self.coefficients) + 2


_FORMS: dict[str, CurveForm] = {}


def register(form: CurveForm) -> CurveForm:
    """Add a form to the registry."""
    _FORMS[form.name] = form
    return form


def curve_forms() -> dict[str, CurveForm]:
    """Return every form by name."""
    return dict(_FORMS)


def find_form(name: str) -> CurveForm:
    """Return the form of this name.

    Raises:
        NotFoundError: There is none.
    """
    if name not in _FORMS:
        raise NotFoundError(f"no curve form {name!r}. {did_you_mean(name, [*_FORMS, 'mixture'])}")
    return _FORMS[name]


SURFACE_COEFFICIENTS = ("E", "A", "B", "alpha", "beta")


def predict_surface(params: FloatArray, columns: Columns) -> FloatArray:
    """Return L = E + A/N^alpha + B/D^beta for every row of params, shape (s, k)."""
    of_size, of_tokens = _log_terms(params, columns)
    return np.asarray(params[:, 0, None] + safe_exp(of_size) + safe_exp(of_tokens))


def _log_terms(params: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
    """Return log of A/N^alpha and of B/D^beta, shape (s, k) each."""
    _, a, b, alpha, beta = (params[:, i, None] for i in range(5))
    log_n, log_d = np.log(columns["num_params"]), np.log(columns["num_tokens"])
    return safe_log(a) - alpha * log_n, safe_log(b) - beta * log_d


def surface_fit(
    restriction: Restriction | None = None,
) -> Callable[[Points, Objective, FloatArray | None], Fitted]:
    """Return the global fit of the reference law, or of a restricted kin of it."""

    def fit(points: Points, objective: Objective, weights: FloatArray | None) -> Fitted:
        fitted = fit_surface(
            points.num_params,
            points.num_tokens,
            points.loss,
            objective=objective,
            weights=weights,
            restriction=restriction,
        )
        return fitted.params, fitted.objective

    return fit


register(
    CurveForm(
        name="chinchilla",
        equation="L = E + A/N^alpha + B/D^beta",
        source="Hoffmann et al. 2022 (arXiv:2203.15556), equation 2",
        coefficients=SURFACE_COEFFICIENTS,
        predict=predict_surface,
        fit=surface_fit(),
        decode=lambda theta, points: decode_surface(theta, points),
        starts=lambda points: surface_starts(points)[:1],
        restriction=Restriction.placed([1, 2, 0, 3, 4]),
    )
)
register(
    CurveForm(
        name="tied",
        equation="L = E + A/N^alpha + B/D^alpha",
        source="Gadre et al. 2024 (arXiv:2403.08540), equation 4 with alpha = beta",
        coefficients=SURFACE_COEFFICIENTS,
        predict=predict_surface,
        fit=surface_fit(tied_exponents()),
        decode=lambda theta, points: decode_surface(theta[:, [0, 1, 2, 3, 3]], points),
        starts=lambda points: surface_starts(points)[1:, :4],
        restriction=Restriction.placed([1, 2, 0, 3, 3]),
    )
)


def _fit_anchored(points: Points, objective: Objective, weights: FloatArray | None) -> Fitted:
    if weights is not None:
        raise AssertionError("the anchored form makes its own draws")
    fit, _ = fit_anchored(points.num_params, points.num_tokens, points.loss, points.compute_flops)
    return fit.params, np.array([fit.objective])


def _draw_anchored(points: Points, num: int, seed: int) -> FloatArray:
    _, draws = fit_anchored(
        points.num_params,
        points.num_tokens,
        points.loss,
        points.compute_flops,
        num_draws=num,
        seed=seed,
    )
    return np.empty((0, 5)) if draws is None else draws


register(
    CurveForm(
        name="anchored",
        equation="L = E + A/N^alpha + B/D^beta, with a prior on how fast loss falls",
        source="the law of Hoffmann et al. 2022; the prior is described in planner/curves/anchored.py",
        coefficients=SURFACE_COEFFICIENTS,
        predict=predict_surface,
        fit=_fit_anchored,
        draw=_draw_anchored,
    )
)


def predict_coupled(params: FloatArray, columns: Columns) -> FloatArray:
    """Return L = E + (A/N^alpha + B/D^beta)^k for every row of params, shape (s, k)."""
    log_inner = np.logaddexp(*_log_terms(params, columns))
    return np.asarray(params[:, 0, None] + safe_exp(params[:, 5, None] * log_inner))


def robust_fit(
    predict: Callable[[FloatArray, Columns], FloatArray],
    decode: Callable[[FloatArray, Points], FloatArray],
    starts: Callable[[Points], FloatArray],
) -> Callable[[Points, Objective, FloatArray | None], Fitted]:
    """Return the fit of a form that has no solver of its own.

    Args:
        predict: The form's prediction from its natural parameters.
        decode: (theta (b, p), points) -> natural parameters; theta is of order one and free.
        starts: points -> theta (b, p). The fit takes the best of them; each weighting of a
            bootstrap starts at that optimum.
    """

    def fit(points: Points, objective: Objective, weights: FloatArray | None) -> Fitted:
        columns = points.covariates()

        def model(theta: FloatArray) -> FloatArray:
            value = predict(decode(theta, points), columns)
            return np.asarray(np.log(value)) if objective.is_log else value

        target = np.log(points.loss) if objective.is_log else points.loss
        theta = starts(points)
        ones = np.ones((len(theta), len(points)))
        theta, value = minimize_robust(model, target, theta, ones, delta=objective.delta)
        theta, value = theta[[value.argmin()]], value[[value.argmin()]]
        if weights is not None and not (len(weights) == 1 and (weights == 1.0).all()):
            repeated = np.repeat(theta, len(weights), axis=0)
            theta, value = minimize_robust(model, target, repeated, weights, delta=objective.delta)
        return decode(theta, points), value

    return fit


def log_means(points: Points) -> tuple[float, float]:
    """Return the means of log N and log D: fits are centred there."""
    return float(np.log(points.num_params).mean()), float(np.log(points.num_tokens).mean())


def decode_surface(theta: FloatArray, points: Points) -> FloatArray:
    """Return (E, A, B, alpha, beta, ...) of theta = (e, a, b, alpha, beta, ...) in centred logs."""
    x, y = log_means(points)
    params = theta.copy()
    params[:, 0] = safe_exp(theta[:, 0])
    params[:, 1] = safe_exp(theta[:, 1] + theta[:, 3] * x)
    params[:, 2] = safe_exp(theta[:, 2] + theta[:, 4] * y)
    return params


def surface_starts(points: Points) -> FloatArray:
    """Return the optima of the free and of the tied surface as theta, shape (2, 5)."""
    x, y = log_means(points)
    objective = OBJECTIVES["huber_log"]
    rows = []
    equal = np.ones((1, len(points)))
    for restriction in (None, tied_exponents()):
        fitted, _ = surface_fit(restriction)(points, objective, equal)
        e, a, b, alpha, beta = fitted[0]
        logs = safe_log(np.array([a, b])) - np.array([alpha * x, beta * y])
        low_e = np.log(max(e, 0.05 * points.loss.min()))
        rows.append([low_e, *np.clip(logs, -8, 2), alpha, beta])
    return np.array(rows)


def decode_with_logs(theta: FloatArray, points: Points) -> FloatArray:
    """Return (E, A, B, alpha, beta) of a surface's theta, and e to the further coordinates."""
    return np.column_stack([decode_surface(theta[:, :5], points), safe_exp(theta[:, 5:])])


def with_tails(base: FloatArray, tails: Sequence[Sequence[float]]) -> FloatArray:
    """Return every row of base with every tail of further coordinates."""
    return np.concatenate(
        [np.column_stack([base, np.tile(tail, (len(base), 1))]) for tail in tails]
    )


def _coupled_starts(points: Points) -> FloatArray:
    base = surface_starts(points)
    rows = []
    for k in (0.6, 1.0, 1.6):
        spread = with_tails(base, [[np.log(k)]])
        spread[:, 1:5] /= k
        rows.append(spread)
    return np.concatenate(rows)


register(
    CurveForm(
        name="coupled",
        equation="L = E + (A/N^alpha + B/D^beta)^k",
        source="Kaplan et al. 2020 (arXiv:2001.08361), equation 1.5, with an asymptote",
        coefficients=(*SURFACE_COEFFICIENTS, "k"),
        predict=predict_coupled,
        fit=robust_fit(predict_coupled, decode_with_logs, _coupled_starts),
        decode=decode_with_logs,
        starts=_coupled_starts,
    )
)
