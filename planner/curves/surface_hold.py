"""The reference law with one coefficient held: Newton on what is left, for profiles.

Every coefficient of L = E + A/N^alpha + B/D^beta in logs is linear in the centred coordinates
(log A = a + alpha mean(log N)), except the exponents, which are coordinates themselves: holding one
is a restriction like a tie or a pin.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import null_space

from planner.curves.arrays import FloatArray
from planner.curves.newton import Restriction, SeparableProblem, minimize
from planner.curves.points import Points
from planner.curves.surface import Objective

__all__ = ["surface_hold"]

PLACES = (2, 0, 1, 3, 4)
"""Where E, A, B, alpha and beta stand in theta = (a, b, e, alpha, beta)."""

FLOOR, CEILING = -40.0, 40.0
"""Of the logs at which a search starts."""


def surface_hold(
    points: Points, objective: Objective, restriction: Restriction
) -> Callable[[int, FloatArray, FloatArray], tuple[FloatArray, FloatArray]]:
    """Return the search of a restricted surface with one of E, A, B, alpha, beta held.

    Its theta is that of `forms.decode_surface`, (e, a, b, alpha, beta), less what the restriction
    ties or pins: the coordinates phi of `Restriction`, in the order of that theta.
    """
    center = np.array([np.log(points.num_params).mean(), np.log(points.num_tokens).mean()])
    problem = SeparableProblem(
        np.log(points.num_params) - center[0],
        np.log(points.num_tokens) - center[1],
        points.loss,
        is_log=objective.is_log,
        delta=objective.delta,
    )

    def hold(place: int, held: FloatArray, starts: FloatArray) -> tuple[FloatArray, FloatArray]:
        row = np.zeros(5)
        row[PLACES[place]] = 1.0
        if place in (1, 2):
            row[2 + place] = center[place - 1]
        wanted = np.exp(held) if place > 2 else held
        thetas, values = [], []
        for at, value in enumerate(wanted):
            theta, least = _hold_one(problem, restriction, row, float(value), starts[:, at])
            thetas.append(theta)
            values.append(least)
        return np.array(thetas), np.array(values)

    return hold


def _hold_one(
    problem: SeparableProblem,
    restriction: Restriction,
    row: FloatArray,
    value: float,
    starts: FloatArray,
) -> tuple[FloatArray, float]:
    """Return the best phi and objective with row @ theta = value."""
    along = row @ restriction.basis
    fixed = along * (value - row @ restriction.offset) / (along @ along)
    basis = null_space(along[None])
    inner = Restriction(
        basis=restriction.basis @ basis,
        offset=restriction.offset + restriction.basis @ fixed,
    )
    begin = np.clip(starts - fixed, FLOOR, CEILING) @ basis
    phi, found = minimize(
        problem, begin, np.ones((len(begin), problem.loss.size)), restriction=inner
    )
    best = int(found.argmin())
    return fixed + basis @ phi[best], float(found[best])
