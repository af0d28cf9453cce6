"""TrialConfig: one fully resolved point, everything that the engine needs; and TrialResult.

    point.py      TrialConfig and its cross-field rules
    model.py      shape of the model
    settings.py   batch, optimizer, schedule, precision, execution, length
    data.py       corpora, mixtures, tokenizers
    layout.py     degrees of parallelism
    result.py     TrialResult and its states

A TrialConfig that exists is consistent. What a configuration costs is in `costs/`; whether it fits
a cluster is in `planning.py`.
"""

from __future__ import annotations

from planner.trial.data import BPE, BYTES, DataConfig, SourceConfig
from planner.trial.divisibility import divisors
from planner.trial.layout import ParallelLayout
from planner.trial.model import ModelConfig
from planner.trial.point import TrialConfig
from planner.trial.result import TrialResult, TrialState
from planner.trial.settings import (
    BatchConfig,
    ExecutionConfig,
    OptimizerConfig,
    PrecisionConfig,
    ScheduleConfig,
    TrainConfig,
)

__all__ = [
    "BPE",
    "BYTES",
    "BatchConfig",
    "DataConfig",
    "ExecutionConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelLayout",
    "PrecisionConfig",
    "ScheduleConfig",
    "SourceConfig",
    "TrainConfig",
    "TrialConfig",
    "TrialResult",
    "TrialState",
    "divisors",
]
