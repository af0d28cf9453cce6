"""Writes a recommendation: the answer, and the configuration as something to run.

recommendation.json     the whole answer
exports/trial.json      for `python -m planner.engine exports/trial.json`
exports/study.yaml      a study of this one trial, for `planner sweep`
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import yaml

from planner.budget import format_amount
from planner.config import parse_config
from planner.costs import ClusterConfig, estimate, resolve_cluster
from planner.curves import ScalingLaw, fit
from planner.planning import charge
from planner.recommendation.answer import Recommendation
from planner.results import Results
from planner.run_folder import RunFolder, write_atomically
from planner.study import Study
from planner.trial import TrialState

__all__ = ["run_law", "study_of", "trial_text", "write_recommendation", "write_trial"]

_SLACK: Final = 1.05
"""The exported study's budget over the recommendation's, and over the estimate that does not know
the measured speed: neither may stop the run that it foretells."""


def trial_text(recommendation: Recommendation) -> str:
    """Return the TrialConfig as the engine reads it."""
    return recommendation.config.model_dump_json(indent=2) + "\n"


def study_of(recommendation: Recommendation, cluster: ClusterConfig) -> Study:
    """Return a study whose only trial is the recommended one.

    Raises:
        ConfigError: The study's rules are broken.
    """
    config = recommendation.config
    planned = charge(estimate(config, resolve_cluster(cluster)))
    budget = {
        name: float(f"{_SLACK * max(limit, getattr(planned, name)):.4g}")
        for name, limit in recommendation.budget.items()
    }
    data: dict[str, Any] = {
        "name": f"{recommendation.study[:100]}-recommended",
        "question": "Does the recommended configuration reach the predicted loss?",
        "search_space": {
            "name": "recommended",
            "parameters": {"train.seed": {"choice": [config.train.seed]}},
        },
        "base": config.model_dump(mode="json"),
        "search": {"algorithm": "grid"},
        "budget": budget,
        "cluster": cluster.model_dump(mode="json", exclude_none=True),
    }
    return parse_config(data, Study, "the exported study")


def study_text(recommendation: Recommendation, study: Study) -> str:
    """Return the exported study as YAML, with where it comes from on top."""
    row = recommendation.choice
    amounts = ", ".join(format_amount(n, v) for n, v in recommendation.budget.items())
    head = [
        f"Recommended by planner {recommendation.planner_version} for {amounts} on "
        f"{recommendation.cluster}.",
        f"Predicted loss {row.predicted_loss:.4f} ({recommendation.level:.0%} interval "
        f"{row.loss_lower:.4f} to {row.loss_upper:.4f}).",
    ]
    body = study.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(_plain_numbers(body), sort_keys=False, allow_unicode=True, width=100)
    return "".join(f"# {line}\n" for line in head) + text


def _plain_numbers(value: Any) -> Any:
    """Return the value with whole floats as integers where they are short."""
    if isinstance(value, dict):
        return {k: _plain_numbers(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_numbers(item) for item in value]
    if (
        isinstance(value, float)
        and math.isfinite(value)
        and value.is_integer()
        and abs(value) < 1e6
    ):
        return int(value)
    return value


def run_law(folder: RunFolder, results: Results) -> ScalingLaw:
    """Return the law of a run: what `laws.json` holds, or a fit of its results.

    A law of other rows than the results have now (the sweep went on since) is fitted again, in the
    same form.

    Raises:
        FitError: The trials cannot identify a law.
    """
    form = "mixture"
    if folder.laws.is_file():
        law = ScalingLaw.load(folder.laws)
        if _is_of(law, results):
            return law
        form = law.form
    return fit(results, form=form, seed=results.study.search.seed)


def _is_of(law: ScalingLaw, results: Results) -> bool:
    """Return whether a law counts as many rows, and as many unfinished ones, as there are."""
    left_out = sum(number for why, number in law.dropped.items() if why.startswith("state is "))
    completed = results.count(TrialState.COMPLETED)
    num_rows = law.num_rows + sum(law.dropped.values())
    return num_rows == len(results.trials) and num_rows - left_out == completed


def write_recommendation(
    recommendation: Recommendation, folder: RunFolder, cluster: ClusterConfig
) -> tuple[Path, ...]:
    """Write the recommendation and its exports into a run folder, and return their paths.

    Raises:
        ConfigError: The folder cannot be written.
    """
    study = study_of(recommendation, cluster)
    return (
        folder.write("recommendation.json", recommendation.to_json()),
        folder.write("exports/trial.json", trial_text(recommendation)),
        folder.write("exports/study.yaml", study_text(recommendation, study)),
    )


def write_trial(recommendation: Recommendation, path: Path, cluster: ClusterConfig) -> None:
    """Write the configuration to a file: a study if it ends in .yaml, else the engine's JSON.

    Raises:
        ConfigError: The file cannot be written.
    """
    if path.suffix in (".yaml", ".yml"):
        write_atomically(path, study_text(recommendation, study_of(recommendation, cluster)))
    else:
        write_atomically(path, trial_text(recommendation))
