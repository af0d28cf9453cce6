"""The forms of a loss curve: a registry, so that another form is one entry.

A form says what it is, which columns it needs, how it predicts and how it is fitted. Everything
else (bootstrap, back-test, mixture, intervals, JSON) works on any entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from planner.curves.arrays import FloatArray
from planner.curves.points import Points
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
