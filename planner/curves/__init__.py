"""Scaling curves: fit them, say how sure they are, and decide with them."""

from planner.curves.allocation import (
    Allocation,
    allocation_for_loss,
    optimal_allocation,
)
from planner.curves.closed_forms import max_tokens_by_deadline, overtraining_overhead
from planner.curves.compression import (
    BestOriginal,
    CompressionCurves,
    fit_compression_curves,
)
from planner.curves.critical_batch import (
    CriticalBatch,
    PowerLaw,
    fit_critical_batch,
    fit_power_law,
)
from planner.curves.design import SuggestedTrial, Suggestion, suggest
from planner.curves.downstream import (
    AccuracyPrediction,
    DownstreamLink,
    fit_downstream_link,
)
from planner.curves.envelope import Envelope, fit_envelope
from planner.curves.fitting import fit
from planner.curves.forms import CurveForm, curve_forms
from planner.curves.isoflop import IsoflopProfile, SizeFrontier, fit_frontier, isoflop_profiles
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
from planner.curves.learning_curves import (
    LearningCurve,
    fit_learning_curve,
    learning_curve_forms,
)
from planner.curves.methods import SizeByMethod, best_sizes
from planner.curves.points import Points
from planner.curves.prediction import predict_table
from planner.curves.repeated import RepeatedDataFit, fit_repeated
from planner.curves.schedules import LossTrace, ScheduleLaw, fit_schedule_law
from planner.curves.stable import StableLosses
from planner.curves.surface import OBJECTIVES, Objective, fit_surface
from planner.curves.tables import points_from_table, read_points, read_table
from planner.curves.tuning_law import TunedSetting, TuningGrid, TuningLaw, fit_tuning_law
from planner.curves.variants import pinned_form

__all__ = [
    "OBJECTIVES",
    "AccuracyPrediction",
    "Allocation",
    "Backtest",
    "BestOriginal",
    "Coefficient",
    "Component",
    "CompressionCurves",
    "CriticalBatch",
    "CurveForm",
    "DownstreamLink",
    "Envelope",
    "ExtrapolationError",
    "FitWarning",
    "FittedRange",
    "IsoflopProfile",
    "LearningCurve",
    "LossTrace",
    "Objective",
    "Points",
    "PowerLaw",
    "Prediction",
    "RepeatedDataFit",
    "ScalingLaw",
    "ScheduleLaw",
    "SizeByMethod",
    "SizeFrontier",
    "StableLosses",
    "SuggestedTrial",
    "Suggestion",
    "TunedSetting",
    "TuningGrid",
    "TuningLaw",
    "allocation_for_loss",
    "best_sizes",
    "curve_forms",
    "fit",
    "fit_compression_curves",
    "fit_critical_batch",
    "fit_downstream_link",
    "fit_envelope",
    "fit_frontier",
    "fit_learning_curve",
    "fit_power_law",
    "fit_repeated",
    "fit_schedule_law",
    "fit_surface",
    "fit_tuning_law",
    "isoflop_profiles",
    "learning_curve_forms",
    "max_tokens_by_deadline",
    "optimal_allocation",
    "overtraining_overhead",
    "pinned_form",
    "points_from_table",
    "predict_table",
    "read_points",
    "read_table",
    "suggest",
]
