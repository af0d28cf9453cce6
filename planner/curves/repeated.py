"""Loss when tokens are seen more than once, and how little the data say about the limit.

R_D* and R_N* trade off against each other and the profile of R_D* is nearly flat: they come with
profile intervals, open where the data do not close them, and never as point values alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.curves.arrays import LARGEST_LOG, FloatArray, safe_exp
from planner.curves.checks import require_level
from planner.curves.forms import (
    Columns,
    CurveForm,
    decode_with_logs,
    predict_surface,
    register,
    robust_fit,
    surface_starts,
    with_tails,
)
from planner.curves.law import Coefficient
from planner.curves.points import Points
from planner.curves.problem import CurveProblem
from planner.curves.profiles import profile_coefficients, profile_of
from planner.curves.robust import minimize_robust
from planner.errors import FitError

__all__ = [
    "MUENNIGHOFF_C4",
    "PUBLISHED_REPETITION",
    "RepeatedDataFit",
    "effective_columns",
    "effective_tokens",
    "fit_repeated",
    "predict_repeated",
]

MUENNIGHOFF_C4 = (1.86914, 520.82, 1487.7, 0.3526596, 0.3526596)
"""(E, A, B, alpha, beta) of Muennighoff et al. 2023, the fit on C4 (their notebook, rounded)."""

PUBLISHED_REPETITION = (15.39, 5.31)
"""(R_D*, R_N*) as published; not the optimum of their own objective on the points at hand."""

DELTA = 1e-3
SEARCH_LOW, SEARCH_HIGH = 0.3, 3000.0
"""Range of R_D* and R_N*: a third of an epoch to far more epochs than anyone trained."""

MIN_REPEATED_ROWS = 8


def effective_tokens(num_tokens: ArrayLike, unique_tokens: ArrayLike, r_d: ArrayLike) -> FloatArray:
    """Return D' = U + U R_D* (1 - exp(-R_D/R_D*)) with R_D = max(D/U - 1, 0).

    Args:
        num_tokens: D, tokens seen.
        unique_tokens: U, distinct tokens.
        r_d: R_D*, repetitions after which a token is worth 1 - 1/e less.

    Source: Muennighoff et al. 2023 (arXiv:2305.16264), equation 5.

    >>> effective_tokens(4e9, 1e9, 15.39).round(-6).tolist()
    3726000000.0
    """
    seen, unique, limit = (
        np.asarray(v, dtype=np.float64) for v in (num_tokens, unique_tokens, r_d)
    )
    unique = np.minimum(unique, seen)
    repeats = seen / unique - 1.0
    return np.asarray(unique * (1.0 - limit * np.expm1(-repeats / limit)))


def predict_repeated(params: FloatArray, columns: Columns) -> FloatArray:
    """Return L = E + A/N'^alpha + B/D'^beta, shape (s, k), params (E, A, B, alpha, beta, R_D*, R_N*).

    Source: Muennighoff et al. 2023 (arXiv:2305.16264), section 3 and appendix A.
    """
    return predict_surface(params[:, :5], effective_columns(params, columns))


def effective_columns(params: FloatArray, columns: Columns) -> dict[str, FloatArray]:
    """Return N' and D', what size and tokens seen are worth, shape (s, k) each.

    D' is that of `effective_tokens`, and N' saturates like it: N' = U_N + U_N R_N* (1 - exp(-R_N/R_N*)), U_N = min(N, N_opt(U)),
    R_N = N/U_N - 1, N_opt(U) = G (G U)^(beta/alpha), G = (alpha A/(beta B))^(1/(alpha+beta)).

    Source: Muennighoff et al. 2023 (arXiv:2305.16264), section 3 and appendix A.
    """
    _, a, b, alpha, beta, r_d, r_n = (params[:, i, None] for i in range(7))
    unique = np.minimum(columns["unique_tokens"], columns["num_tokens"])
    with np.errstate(all="ignore"):  # a search passes where a term vanishes or does not fall
        log_g = (np.log(alpha) + np.log(a) - np.log(beta) - np.log(b)) / (alpha + beta)
        log_best = log_g + (log_g + np.log(unique)) * beta / alpha
        best_for_unique = safe_exp(np.maximum(log_best, -LARGEST_LOG))
        return {
            "num_params": effective_tokens(columns["num_params"], best_for_unique, r_n),
            "num_tokens": effective_tokens(columns["num_tokens"], unique, r_d),
        }


def _starts(points: Points) -> FloatArray:
    logs = [[np.log(d), np.log(n)] for d in (4.0, 15.0, 60.0) for n in (3.0, 10.0)]
    return with_tails(surface_starts(points), logs)


register(
    CurveForm(
        name="repeated",
        equation="L = E + A/N'^alpha + B/D'^beta, D' = U + U R_D (1 - exp(-(D/U - 1)/R_D))",
        source="Muennighoff et al. 2023 (arXiv:2305.16264), equations 5 and 6",
        coefficients=("E", "A", "B", "alpha", "beta", "R_D", "R_N"),
        predict=predict_repeated,
        fit=robust_fit(predict_repeated, decode_with_logs, _starts),
        decode=decode_with_logs,
        starts=_starts,
        columns=("num_params", "num_tokens", "unique_tokens"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedDataFit:
    """R_D* and R_N* with profile intervals, for a given law of unrepeated data."""

    repeat_tokens: Coefficient
    repeat_params: Coefficient
    objective_value: float
    num_rows: int
    num_repeated_rows: int
    profile: tuple[tuple[float, float], ...]
    """(R_D*, objective with R_N* at its best): the flatness itself."""

    def describe(self) -> str:
        """Return what may be said of R_D*, in one sentence."""
        c = self.repeat_tokens
        low = "unbounded below" if c.lower is None else f"from {c.lower:.3g}"
        high = "with no upper bound in these data" if c.upper is None else f"to {c.upper:.3g}"
        return (
            f"R_D* lies {low} {high} at {100 * c.level:.0f} % confidence "
            f"({self.num_repeated_rows} trainings with repeated data); the value of least "
            f"objective, {c.value:.3g}, is not to be used on its own."
        )


def fit_repeated(
    points: Points,
    *,
    base: tuple[float, ...] = MUENNIGHOFF_C4,
    level: float = 0.9,
) -> RepeatedDataFit:
    """Fit R_D* and R_N* with the law of unrepeated data held fixed.

    The interval of each is that of its profile (`profiles.profile_coefficients`).

    Args:
        points: With `unique_tokens`.
        base: (E, A, B, alpha, beta) of unrepeated data.
        level: Of the intervals.

    Raises:
        ConfigError: The level is not in (0, 1).
        FitError: Fewer than eight trainings saw their data more than once.
    """
    require_level(level)
    if points.unique_tokens is None:
        raise FitError("repeated data need the column unique_tokens, which the table lacks.")
    num_repeated = int((points.num_tokens > 1.05 * points.unique_tokens).sum())
    if num_repeated < MIN_REPEATED_ROWS:
        raise FitError(
            f"R_D* needs at least {MIN_REPEATED_ROWS} trainings of more than one epoch: "
            f"got {num_repeated}.",
            hint="Train several sizes for 2, 4, 16 and 60 epochs of one small data set.",
        )
    problem = _problem(points, base)
    grid = np.log([0.7, 2.0, 6.0, 20.0, 80.0, 400.0])
    starts = np.array([[d, n] for d in grid for n in grid])
    theta, value = minimize_robust(
        problem.model, problem.target, starts, np.ones((len(starts), len(points))), delta=DELTA
    )
    best = theta[value.argmin()]
    profile = profile_of(problem, best, "R_D")
    tokens, params = profile_coefficients(problem, best, level=level)
    return RepeatedDataFit(
        repeat_tokens=tokens,
        repeat_params=params,
        objective_value=min(float(value.min()), min(height for _, height in profile)),
        num_rows=len(points),
        num_repeated_rows=num_repeated,
        profile=profile,
    )


def _problem(points: Points, base: tuple[float, ...]) -> CurveProblem:
    """Return the problem in theta = logs of (R_D*, R_N*).

    Trainings of one size on one data set err together: the curve of one is above or below the law
    over all its epochs.
    """
    columns = points.covariates()

    def natural(theta: FloatArray) -> FloatArray:
        return np.exp(np.clip(theta, np.log(SEARCH_LOW), np.log(SEARCH_HIGH)))

    def model(theta: FloatArray) -> FloatArray:
        params = np.column_stack([np.tile(base, (len(theta), 1)), natural(theta)])
        return np.asarray(np.log(predict_repeated(params, columns)))

    pairs = np.round(np.log(np.stack([points.num_params, columns["unique_tokens"]], axis=1)), 2)
    return CurveProblem(
        names=("R_D", "R_N"),
        model=model,
        target=np.log(points.loss),
        natural=natural,
        delta=DELTA,
        ranges=dict.fromkeys(("R_D", "R_N"), (SEARCH_LOW, SEARCH_HIGH)),
        group=np.unique(pairs, axis=0, return_inverse=True)[1].ravel(),
    )
