"""What the study's trials say, or the points of its space where there are none."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Final

from planner.config import parse_config
from planner.curves import ScalingLaw
from planner.errors import ConfigError
from planner.objectives import violations_of
from planner.recommendation.options import law_params
from planner.results import Results
from planner.search_space import quasi_random_points
from planner.study import Study, trial_config
from planner.trial import ModelConfig, TrialConfig, TrialResult, TrialState

__all__ = ["Evidence", "gather_evidence"]

_NUM_PROBES: Final = 64
"""Points of the space that stand for it where there are no results."""
_LONGER: Final = 2.0
"""Tokens per parameter beyond the most that was tried, as a factor: scaling size and tokens together
is what a law is for; a ratio far from every trial is a guess about one of its terms alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What a recommendation rests on beside the law."""

    template: TrialConfig
    """The configuration of the best trial that keeps the study's constraints."""
    models: tuple[ModelConfig, ...]
    """Shapes that were trained to their end."""
    precisions: frozenset[str]
    finished: tuple[tuple[TrialResult, TrialConfig], ...]
    trials: tuple[TrialResult, ...]
    unique_tokens: float | None
    """Tokens of the training split, where the trials say."""

    def sizes(self, law: ScalingLaw) -> list[int]:
        """Return the parameters of each finished trial, counted as the law counts."""
        return [law_params(law, config.model) for _, config in self.finished]

    def most_tokens_per_param(self, law: ScalingLaw) -> float:
        """Return the most tokens per parameter that an option is trained on."""
        tried = [
            (trial.train_tokens or 0) / size
            for (trial, _), size in zip(self.finished, self.sizes(law), strict=True)
        ]
        widest = law.fitted_range.num_tokens[1] / law.fitted_range.num_params[0]
        return _LONGER * max(tried, default=widest)


def gather_evidence(study: Study, results: Results | None) -> Evidence:
    """Return the study's trials, or points of its space where there are none."""
    trials = results.trials if results is not None else ()
    known = [(t, c) for t in trials if (c := _config_of(t)) is not None]
    finished = tuple(
        (trial, config)
        for trial, config in known
        if trial.state is TrialState.COMPLETED and trial.val_loss and trial.train_tokens
    )
    allowed = [p for p in finished if max(violations_of(study.constraints, p[0]), default=0) <= 0]
    best = min(allowed or finished, key=lambda pair: pair[0].val_loss or math.inf, default=None)
    configs = [config for _, config in finished] or _probes(study)
    corpus = [t.metrics["unique_tokens"] for t in trials if "unique_tokens" in t.metrics]
    return Evidence(
        template=best[1] if best else configs[0],
        models=tuple(dict.fromkeys(config.model for config in configs)),
        precisions=frozenset(config.precision.compute for config in configs),
        finished=finished,
        trials=tuple(trials),
        unique_tokens=max(corpus, default=None),
    )


def _config_of(trial: TrialResult) -> TrialConfig | None:
    try:
        return parse_config(trial.config, TrialConfig)
    except ConfigError:
        return None  # an infeasible point that is no valid trial


def _probes(study: Study) -> list[TrialConfig]:
    found = []
    points = quasi_random_points(study.search_space, study.base, seed=0)
    for point in itertools.islice(points, _NUM_PROBES):
        try:
            found.append(trial_config(study, point))
        except ConfigError:
            continue  # partly infeasible spaces are allowed
    return found
