"""The equations of the curves of one variable, in coordinates of order one.

M1 to M4 of Alabdulmohsin et al. 2022 (arXiv:2209.06640) and the broken neural scaling law of
Caballero et al. 2022 (arXiv:2210.14891): log y of theta, its slopes, where a search starts, and the
coefficients of the equation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.curves.arrays import FloatArray
from planner.curves.forms import with_tails

__all__ = ["FORMS", "LOG_10", "LearningForm"]

LOG_10 = float(np.log(10.0))

NEWTON_STEPS = 8
"""Of the inversion of M4: it has converged to rounding by then."""

Model = Callable[[FloatArray, FloatArray], FloatArray]
"""(theta (b, p), t (n,)) -> log y (b, n); t is log x, zero at the first point, one per decade."""


@dataclass(frozen=True, slots=True)
class LearningForm:
    """One equation."""

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


def _power(theta: FloatArray, t: FloatArray) -> FloatArray:
    """M1: y = a x^-b."""
    return np.asarray(theta[:, :1] - np.exp(theta[:, 1:2]) * t)


def _power_limit(theta: FloatArray, t: FloatArray) -> FloatArray:
    """M2: y = a x^-b + c."""
    return np.asarray(np.logaddexp(_power(theta, t), theta[:, 2:3]))


def _shifted(theta: FloatArray, t: FloatArray) -> FloatArray:
    """M3: y = a (x^-1 + d)^b + c."""
    inner = np.logaddexp(-LOG_10 * t, theta[:, 3:4])
    slope = np.exp(theta[:, 1:2]) / LOG_10
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
    bend = f * np.logaddexp(0.0, LOG_10 * (t - theta[:, 4:5]) / f) / LOG_10
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
    inner = np.logaddexp(-LOG_10 * t, theta[:, 3:4])
    slope = np.exp(theta[:, 1:2]) / LOG_10
    power = theta[:, :1] + slope * inner
    share = np.exp(power - np.logaddexp(power, theta[:, 2:3]))
    along = share * slope
    return np.stack(
        [share, along * inner, 1.0 - share, along * np.exp(theta[:, 3:4] - inner)], axis=2
    )


def _broken_slopes(theta: FloatArray, t: FloatArray) -> FloatArray:
    f, extra = np.exp(theta[:, 5:6]), theta[:, 3:4]
    past = LOG_10 * (t - theta[:, 4:5]) / f
    soft = np.logaddexp(0.0, past)
    bend, turned = f * soft / LOG_10, np.exp(past - soft)
    power = theta[:, :1] - theta[:, 1:2] * t - extra * bend
    share = np.exp(power - np.logaddexp(power, theta[:, 2:3]))
    along_width = f * (soft - past * turned) / LOG_10
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
    reach = max(float(t[-1]), 0.3)
    return with_tails(_limit_starts(t, log_y), [[-8.0 * reach], [-3.0 * reach]])


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


FORMS = {
    form.name: form
    for form in (
        LearningForm(
            "m1",
            "y = a x^-b",
            ("a", "b"),
            _power,
            _power_starts,
            _power_coefficients,
            _power_slopes,
        ),
        LearningForm(
            "m2",
            "y = a x^-b + c",
            ("a", "b", "c"),
            _power_limit,
            _limit_starts,
            _power_coefficients,
            _limit_slopes,
        ),
        LearningForm(
            "m3",
            "y = a (1/x + d)^b + c",
            ("a", "b", "c", "d"),
            _shifted,
            _shifted_starts,
            _shifted_coefficients,
            _shifted_slopes,
        ),
        LearningForm(
            "m4",
            "(y - e)/(e0 - y)^alpha = b x^-c",
            ("b", "c", "e", "e0", "alpha"),
            _saturating,
            _saturating_starts,
            _saturating_coefficients,
            _saturating_slopes,
        ),
        LearningForm(
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
