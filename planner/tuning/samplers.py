"""Which of Optuna's samplers proposes, and how it is set up. Loading this module loads optuna."""

from __future__ import annotations

import math
import warnings
from typing import Final, Literal

import optuna

from planner.search_space import SearchSpace
from planner.study import Study

__all__ = ["NUM_STARTUP", "kind_of", "sampler_of"]

Kind = Literal["tpe", "gp", "cmaes", "evolution"]

NUM_STARTUP: Final = 10
"""Trials drawn at random before the model proposes; Optuna's own default."""
_MOST_GP_PARAMETERS: Final = 4
"""Beyond these it was measured to be worse than the estimator (docs/search-measured.md)."""
_MOST_GP_TRIALS: Final = 200
"""Beyond these a suggestion of the Gaussian process takes seconds."""


def kind_of(study: Study) -> Kind:
    """Return the sampler of a study: for `bayesian` the Gaussian process or the Parzen estimator.

    `auto` takes the process where it is at home: up to 4 parameters, all of them intervals that are
    always there, at most 200 trials, and no scheduler that cuts, because Optuna's process does not
    learn from cut trials. Everywhere else it takes the estimator.
    """
    search = study.search
    if search.algorithm in ("cmaes", "evolution"):
        return "cmaes" if search.algorithm == "cmaes" else "evolution"
    if search.sampler != "auto":
        return "gp" if search.sampler == "gp" else "tpe"
    is_small = len(study.search_space.parameters) <= _MOST_GP_PARAMETERS
    is_short = (search.num_trials or math.inf) <= _MOST_GP_TRIALS
    is_whole = search.scheduler.name == "none"
    return "gp" if is_small and is_short and is_whole and _is_smooth(study.search_space) else "tpe"


def _is_smooth(space: SearchSpace) -> bool:
    """Return whether all parameters are intervals that exist under every condition."""
    return all(each.choice is None and each.when is None for each in space.parameters.values())


def sampler_of(study: Study, kind: Kind, number: int) -> optuna.samplers.BaseSampler:
    """Return a fresh sampler for one proposal, seeded by the study's seed and its number.

    Source: Watanabe 2023 (arXiv:2304.11127) for TPE, Ozaki et al. 2022 (JAIR 73) for it with several
    objectives, Hansen 2016 (arXiv:1604.00772) for CMA-ES, Deb et al. 2002 for NSGA-II; the process
    maximises the logarithm of the expected improvement (Ament et al. 2023, arXiv:2310.20708), of
    the hypervolume where there are several objectives. All as Optuna 5 implements them.
    """
    seed = (study.search.seed * 1_000_003 + number) % 2**32
    if kind == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if kind == "evolution":
        size = max(4, round(math.sqrt(study.search.num_trials or 100)))
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if kind == "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=NUM_STARTUP, deterministic_objective=False
            )
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=NUM_STARTUP,
            multivariate=True,
            group=any(d.when is not None for d in study.search_space.parameters.values()),
        )
