"""Scaling curves: fit them, say how sure they are, and decide with them."""

from planner.curves.allocation import Allocation, optimal_allocation
from planner.curves.fitting import fit
from planner.curves.forms import CurveForm, curve_forms
from planner.curves.law import (
    Backtest,
    Coefficient,
    Component,
    ExtrapolationError,
    FittedRange,
    FitWarning,
    Prediction,
    ScalingLaw,
)
from planner.curves.points import Points, points_from_table, read_points
from planner.curves.surface import OBJECTIVES, Objective, fit_surface

__all__ = [
    "OBJECTIVES",
    "Allocation",
    "Backtest",
    "Coefficient",
    "Component",
    "CurveForm",
    "ExtrapolationError",
    "FitWarning",
    "FittedRange",
    "Objective",
    "Points",
    "Prediction",
    "ScalingLaw",
    "curve_forms",
    "fit",
    "fit_surface",
    "optimal_allocation",
    "points_from_table",
    "read_points",
]
