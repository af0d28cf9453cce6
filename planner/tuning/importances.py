"""Which parameters decide how good a trial is."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Final

from planner.objectives import costs_of
from planner.results import Results
from planner.tuning.warm_start import point_of

__all__ = ["Importances", "importances_of"]

_LEAST_TRIALS: Final = 10
"""Completed trials before anything is said."""
_LEAST_GOOD: Final = 5
"""Trials that the best are taken to be at least; of many trials a tenth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Importances:
    """How much each parameter decides whether a trial is among the best."""

    shares: dict[str, float]
    """Parameter -> share, the largest first; they sum to 1."""
    num_trials: int
    """Completed trials behind them."""


def importances_of(results: Results) -> Importances | None:
    """Return the importances, or None before ten trials have completed or where all are as good.

    The divergence of where the best tenth of the trials lies from where all lie, parameter by
    parameter; of several objectives the best are those that span the most hypervolume. Parameters
    whose condition does not always hold are left out. Source: Watanabe, Bansal and Hutter 2023
    (arXiv:2304.10255), PED-ANOVA, as Optuna 5 implements it.
    """
    study = results.study
    rows = [
        (point, costs)
        for trial in results.completed()
        if (point := point_of(study, trial)) is not None
        and (costs := costs_of(study.objective, trial)) is not None
    ]
    count = len(rows)
    if count < _LEAST_TRIALS:
        return None
    quantile = min(0.5, max(0.1, _LEAST_GOOD / count))
    always = sorted(set.intersection(*(set(point) for point, _ in rows)))
    if not always or _all_are_good([costs[0] for _, costs in rows], quantile):
        return None
    import optuna

    from planner.tuning.translation import Translation

    translation = Translation(study.search_space, study.base)
    theirs = optuna.create_study(directions=["minimize"] * len(study.objective))
    theirs.add_trials([translation.finished(point, costs) for point, costs in rows])
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        shares = optuna.importance.get_param_importances(theirs, evaluator=evaluator, params=always)
    if not sum(shares.values()):
        return None
    return Importances(shares=dict(shares), num_trials=count)


def _all_are_good(costs: list[float], quantile: float) -> bool:
    """Return whether ties leave no trial worse than the best ones.

    >>> _all_are_good([1.0, 1.0, 1.0], 0.5), _all_are_good([1.0, 1.0, 2.0], 0.5)
    (True, False)
    """
    return sorted(costs)[math.ceil(quantile * len(costs)) - 1] == max(costs)
