"""The recommendation: the configuration to train at a budget, and why."""

from planner.recommendation.answer import (
    RANKED_BY,
    Calibration,
    Caution,
    Option,
    Recommendation,
    RunnerUp,
    TunedSetting,
    rank,
)
from planner.recommendation.choosing import law_digest, recommend
from planner.recommendation.writing import run_law, write_recommendation

__all__ = [
    "RANKED_BY",
    "Calibration",
    "Caution",
    "Option",
    "Recommendation",
    "RunnerUp",
    "TunedSetting",
    "law_digest",
    "rank",
    "recommend",
    "run_law",
    "write_recommendation",
]
