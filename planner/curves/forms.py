"""The forms of a loss curve: a registry, so that another form is one entry.

A form says what it is, which columns it needs, how it predicts and how it is fitted. Everything
else (bootstrap, back-test, mixture, intervals, JSON) works on any entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from planner.curves.anchored import fit_anchored
from planner.curves.arrays import FloatArray
from planner.curves.points import Points
from planner.curves.robust import best_per_weighting, minimize_robust
from planner.curves.surface import Objective, fit_surface, tied_exponents
from planner.errors import NotFoundError, did_you_mean

__all__ = ["CurveForm", "Fitted", "curve_forms", "find_form", "register"]

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
    """(points, objective, weights (batch, n) or None for one row of ones) -> Fitted."""
    draw: Callable[[Points, int, int], FloatArray] | None = None
    """(points, number of draws, seed) -> params (draws, p), where it is not the bootstrap of
    `fit`."""
    columns: tuple[str, ...] = ("num_params", "num_tokens")
    min_sizes: int = 3
    """Distinct values of num_params, and of num_tokens, below which nothing is identified."""
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
    e, a, b, alpha, beta = (params[:, i, None] for i in range(5))
    log_n, log_d = np.log(columns["num_params"]), np.log(columns["num_tokens"])
    with np.errstate(divide="ignore"):
        return np.asarray(e + np.exp(np.log(a) - alpha * log_n) + np.exp(np.log(b) - beta * log_d))


def _fit_free(points: Points, objective: Objective, weights: FloatArray | None) -> Fitted:
    fit = fit_surface(
        points.num_params, points.num_tokens, points.loss, objective=objective, weights=weights
    )
    return fit.params, fit.objective


def _fit_tied(points: Points, objective: Objective, weights: FloatArray | None) -> Fitted:
    fit = fit_surface(
        points.num_params,
        points.num_tokens,
        points.loss,
        objective=objective,
        weights=weights,
        restriction=tied_exponents(),
    )
    return fit.params, fit.objective


CHINCHILLA = register(
    CurveForm(
        name="chinchilla",
        equation="L = E + A/N^alpha + B/D^beta",
        source="Hoffmann et al. 2022 (arXiv:2203.15556), equation 2",
        coefficients=SURFACE_COEFFICIENTS,
        predict=predict_surface,
        fit=_fit_free,
    )
)
TIED = register(
    CurveForm(
        name="tied",
        equation="L = E + A/N^alpha + B/D^alpha",
        source="Gadre et al. 2024 (arXiv:2403.08540), equation 4 with alpha = beta",
        coefficients=SURFACE_COEFFICIENTS,
        predict=predict_surface,
        fit=_fit_tied,
    )
)


def _fit_anchored(points: Points, objective: Objective, weights: FloatArray | None) -> Fitted:
    if weights is not None:
        raise AssertionError("the anchored form makes its own draws")
    fit, _ = fit_anchored(points.num_params, points.num_tokens, points.loss, points.compute_flops)
    return fit.params, fit.objective


def _draw_anchored(points: Points, num: int, seed: int) -> FloatArray:
    _, draws = fit_anchored(
        points.num_params,
        points.num_tokens,
        points.loss,
        points.compute_flops,
        num_draws=num,
        seed=seed,
    )
    return np.empty((0, 5)) if draws is None else draws.params


ANCHORED = register(
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
    k = params[:, 5, None]
    inner = params.copy()
    inner[:, 0] = 0.0
    return np.asarray(params[:, 0, None] + predict_surface(inner, columns) ** k)


def _fit_coupled(points: Points, objective: Objective, weights: FloatArray | None) -> Fitted:
    """Fit from the optima of k = 1, spread over k."""
    x, y = np.log(points.num_params), np.log(points.num_tokens)
    shift = np.array([x.mean(), y.mean()])
    x, y = x - shift[0], y - shift[1]

    def model(theta: FloatArray) -> FloatArray:
        e, a, b, alpha, beta, k = (theta[:, i, None] for i in range(6))
        log_sum = np.logaddexp(a - alpha * x, b - beta * y)
        value = np.exp(e) + np.exp(np.exp(k) * log_sum)
        return np.asarray(np.log(value) if objective.is_log else value)

    weights = np.ones((1, len(points))) if weights is None else weights
    starts = _coupled_starts(points, objective, shift)
    theta, value = minimize_robust(
        model,
        np.log(points.loss) if objective.is_log else points.loss,
        np.tile(starts, (len(weights), 1)),
        np.repeat(weights, len(starts), axis=0),
        delta=objective.delta,
    )
    theta, value = best_per_weighting(theta, value, len(weights))
    e, a, b, alpha, beta, k = theta.T
    with np.errstate(over="ignore"):
        params = np.stack(
            [
                np.exp(e),
                np.exp(a + alpha * shift[0]),
                np.exp(b + beta * shift[1]),
                alpha,
                beta,
                np.exp(k),
            ],
            axis=1,
        )
    return params, value


def _coupled_starts(points: Points, objective: Objective, shift: FloatArray) -> FloatArray:
    starts = []
    least = 0.05 * points.loss.min()
    for params in (
        _fit_free(points, objective, None)[0][0],
        _fit_tied(points, objective, None)[0][0],
    ):
        e, a, b, alpha, beta = params
        a = np.clip(np.log(max(a, 1e-12)) - alpha * shift[0], -8, 2)
        b = np.clip(np.log(max(b, 1e-12)) - beta * shift[1], -8, 2)
        starts += [
            [np.log(max(e, least)), a / k, b / k, alpha / k, beta / k, np.log(k)]
            for k in (0.6, 1.0, 1.6)
        ]
    return np.array(starts)


COUPLED = register(
    CurveForm(
        name="coupled",
        equation="L = E + (A/N^alpha + B/D^beta)^k",
        source="Kaplan et al. 2020 (arXiv:2001.08361), equation 1.5, with an asymptote",
        coefficients=(*SURFACE_COEFFICIENTS, "k"),
        predict=predict_coupled,
        fit=_fit_coupled,
    )
)
