"""What a report is made of: everything that the run folder holds, read once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from planner.budget import Budget
from planner.config import parse_config
from planner.costs import parse_cluster, resolve_cluster
from planner.curves import ScalingLaw
from planner.errors import BudgetError, ConfigError, FitError, InfeasibleError
from planner.recommendation import (
    Recommendation,
    law_digest,
    recommend,
    run_law,
)
from planner.results import Results, read_results
from planner.run_folder import RunFolder
from planner.trial import TrialConfig, TrialResult, TrialState
from planner.tuning.search_summary import SearchSummary, read_summary

__all__ = ["Contents", "Losses", "gather"]

_LOST = (
    TrialState.FAILED, TrialState.DIVERGED, TrialState.OUT_OF_MEMORY, TrialState.RUNNING,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """The best trial's loss beside that of knowing only how often each token occurs."""

    best: float
    unigram_entropy: float | None

    @property
    def below_fraction(self) -> float | None:
        """Share by which the best loss lies below the unigram entropy."""
        return None if self.unigram_entropy is None else 1.0 - self.best / self.unigram_entropy


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A run as the report shows it."""

    folder: RunFolder
    results: Results
    law: ScalingLaw | None
    recommendation: Recommendation | None
    obstacle: str | None
    """Why there is no recommendation."""

    @cached_property
    def summary(self) -> SearchSummary:
        """Front, importances and gain, as the sweep wrote them."""
        return read_summary(self.folder)

    @cached_property
    def configs(self) -> dict[str, TrialConfig]:
        """Configuration of each trial that has a valid one."""
        found = {}
        for trial in self.results.trials:
            try:
                found[trial.trial] = parse_config(trial.config, TrialConfig)
            except ConfigError:
                continue  # an infeasible point that is no valid trial
        return found

    def with_state(self, *states: TrialState) -> list[TrialResult]:
        """Return the trials in these states."""
        return [trial for trial in self.results.trials if trial.state in states]

    @cached_property
    def losses(self) -> Losses | None:
        """Best loss of a completed trial, and the corpus's unigram entropy."""
        completed = [trial.val_loss for trial in self.results.completed() if trial.val_loss]
        if not completed:
            return None
        entropies = [
            trial.metrics["unigram_entropy"]
            for trial in self.results.trials
            if "unigram_entropy" in trial.metrics
        ]
        return Losses(best=min(completed), unigram_entropy=max(entropies, default=None))

    @cached_property
    def spent_device_hours(self) -> dict[str, float]:
        """Device-hours by what became of them; they sum to what the study spent."""
        completed = _hours(self.with_state(TrialState.COMPLETED))
        stopped = _hours(self.with_state(TrialState.STOPPED))
        lost = _hours(self.with_state(*_LOST))
        rest = self.results.spend.device_hours - completed - stopped - lost
        return {"completed": completed, "stopped": stopped, "lost": lost + max(rest, 0.0)}


def _hours(trials: list[TrialResult]) -> float:
    return sum(trial.device_hours or 0.0 for trial in trials)


def gather(folder: RunFolder) -> Contents:
    """Return the contents of a run; a law or recommendation that is not there yet is computed.

    Raises:
        NotFoundError: The sweep has not written any results.
        ConfigError: A file of the run is damaged.
    """
    results = read_results(folder)
    law: ScalingLaw | None = None
    answer: Recommendation | None = None
    obstacle: str | None = None
    try:
        law = run_law(folder, results)
        answer = _recommendation(folder, results, law)
    except (FitError, InfeasibleError, BudgetError) as error:
        obstacle = str(error)
    return Contents(
        folder=folder, results=results, law=law, recommendation=answer, obstacle=obstacle
    )


def _recommendation(folder: RunFolder, results: Results, law: ScalingLaw) -> Recommendation:
    """Return the run's recommendation; one from another law is made again as it was asked for."""
    study = results.study
    if not folder.recommendation.is_file():
        return recommend(law, study.target_budget, study, results=results)
    answer = Recommendation.from_json(folder.recommendation.read_text(encoding="utf-8"))
    if answer.law_digest == law_digest(law):
        return answer
    home = answer.cluster == str(resolve_cluster(study.cluster))
    return recommend(
        law,
        Budget(**answer.budget),
        study,
        results=results,
        cluster=study.cluster if home else parse_cluster(answer.cluster),
        max_params=answer.max_params,
        level=answer.level,
    )
