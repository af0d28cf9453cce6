"""Study: one question, its space, fixed settings, objective, search method, budget and cluster.

The study is the first floor that knows both the search space and TrialConfig, so this is where
dotted paths are checked, and where a point becomes a TrialConfig.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, JsonValue, model_validator

from planner import library
from planner.budget import Budget
from planner.config import (
    Config,
    Count,
    Document,
    Fraction,
    Key,
    Name,
    PositiveCount,
    PositiveFloat,
    field_names,
    problems_error,
    read_yaml,
    validate,
)
from planner.costs import ClusterConfig, num_train_tokens
from planner.errors import ConfigError, did_you_mean
from planner.objectives import MetricConstraint, Objective, Objectives
from planner.search_space import SearchSpace, merge, quasi_random_points, value_at
from planner.trial import TrialConfig

__all__ = [
    "CheckpointPolicy",
    "MetricConstraint",
    "Objective",
    "SchedulerConfig",
    "SearchConfig",
    "Study",
    "load_study",
    "study_from_json",
    "trial_config",
]

_TARGET_FACTOR: Final = 10.0
_NUM_PROBES: Final = 64
"""Points tried at load to tell a mistake (all fail alike) from a partly infeasible space."""


class SchedulerConfig(Config):
    """Which trials are cut, and when; fidelity is compute spent."""

    name: Literal[
        "none", "asha", "octaves", "hyperband", "bohb", "median", "pbt", "pb2"
    ] = "none"  # fmt: skip
    """`asha` halves asynchronously on rungs of compute, `octaves` with a rung at every doubling and
    on the best loss so far; `hyperband` does so with several graces at once, `bohb` with a model of
    the results at the largest rung that has enough; `median` stops what is worse than the
    median at a rung; `pbt` lets weak trials copy strong ones and change their settings by chance,
    `pb2` by a model of what the changes before have gained."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """Rungs lie at powers of this in FLOPs; about one in this many trials passes each."""
    grace_fraction: Fraction = 0.2
    """Share of its own planned compute that every trial may spend before it can be cut."""
    within: tuple[str, ...] = ()
    """Parameters whose values trials must share to be compared, such as `model`."""
    interval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """`pbt`, `pb2`: share of its compute after which a trial may copy another."""
    quantile_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """`pbt`, `pb2`: share of the trials that copy, and that are copied."""
    perturb: tuple[str, ...] = ()
    """`pbt`, `pb2`: parameters of the space that a copy changes; none of them may change the model."""


SUPPORTED_PAIRS: Final[Mapping[str, tuple[str, ...]]] = {
    "grid": ("none", "asha", "octaves", "median", "pbt", "pb2"),
    "random": ("none", "asha", "octaves", "hyperband", "median", "pbt", "pb2"),
    "bayesian": ("none", "asha", "octaves", "hyperband", "bohb", "median"),
    "cost_aware": ("none", "asha", "octaves", "hyperband", "median"),
    "cmaes": ("none",),
    "evolution": ("none",),
}
"""Algorithm -> schedulers that it goes with. CMA-ES and evolution need whole generations of results,
PBT changes the settings that a model would learn from, BOHB brings its model along."""


ONE_OBJECTIVE: Final = ("cmaes", "cost_aware", "bohb", "pbt", "pb2")
"""Algorithms and schedulers that know one objective only."""


class CheckpointPolicy(Config):
    """Which checkpoints of a run are kept. What a trial goes on from is never dropped."""

    max_bytes: PositiveFloat | None = None
    """Most bytes of all checkpoints; the least useful are dropped first: former ones, then those of
    trials that were cut, then those of finished trials from the worst to the best."""
    keep_best: Count | None = None
    """Ended trials that keep their checkpoint, the best ones; by default all."""


class SearchConfig(Config):
    """How the next trial is chosen."""

    algorithm: Literal["random", "grid", "bayesian", "cost_aware", "cmaes", "evolution"] = "random"
    """`random` is quasi-random, `grid` takes every combination, `bayesian` models the results,
    `cost_aware` models results, compute and cost, and starts from published laws,
    `cmaes` adapts a normal distribution, `evolution` crosses and mutates a population."""
    sampler: Literal["auto", "tpe", "gp"] = "auto"
    """`bayesian`: Parzen estimator or Gaussian process; `auto` takes the process for up to 4
    intervals without conditions and 200 trials that nothing cuts."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """In a file: a name, or a mapping with a name and its settings."""
    num_trials: PositiveCount | None = None
    """Trials to run; by default the whole grid, or until the budget is spent."""
    seed: Count = 0
    """Seed of the searcher."""
    earlier: tuple[str, ...] = ()
    """`bayesian`, `cost_aware`: former runs whose finished trials the search starts from."""
    stop_when: Literal["never", "gain_below_cost"] = "never"
    """`gain_below_cost` proposes no further trial once one is expected to gain less than its
    compute would, spent on a longer final training."""
    max_concurrent: PositiveCount | None = None
    """Trials at once; by default as many as the cluster holds. 1 makes the study sequential."""
    max_retries: Count = 2
    """Further attempts of a trial that failed through no fault of its configuration."""
    max_silence_seconds: PositiveFloat = 1800.0
    """Longest time between two reports of a trial before its attempt counts as hung and is ended."""
    checkpoints: CheckpointPolicy = CheckpointPolicy()

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.algorithm != "grid" and self.num_trials is None:
            raise ValueError(f"{self.algorithm} search needs num_trials")
        allowed = SUPPORTED_PAIRS[self.algorithm]
        if self.scheduler.name not in allowed:
            raise ValueError(
                f"algorithm {self.algorithm!r} goes with scheduler {', '.join(allowed)} "
                f"(got {self.scheduler.name!r})"
            )
        if self.scheduler.name in ("pbt", "pb2") and not self.scheduler.perturb:
            raise ValueError(
                f"scheduler {self.scheduler.name} needs perturb: the parameters that a copy changes"
            )
        if self.sampler != "auto" and self.algorithm != "bayesian":
            raise ValueError(f"sampler goes with bayesian (got algorithm {self.algorithm!r})")
        if self.earlier and self.algorithm not in ("bayesian", "cost_aware"):
            raise ValueError(
                "earlier goes with bayesian and cost_aware, which learn from results "
                f"(got algorithm {self.algorithm!r})"
            )
        if self.sampler == "gp" and self.scheduler.name != "none":
            raise ValueError(
                "sampler gp goes with scheduler none, because it does not learn from cut trials "
                f"(got {self.scheduler.name!r})"
            )
        return self


class Study(Config):
    """One question: space, fixed settings, objective, search method, budget and cluster."""

    name: Name
    """Also the run folder's name, with characters that paths do not allow replaced."""
    question: str = ""
    """What the study is to answer, in a sentence."""
    search_space: SearchSpace
    """In a file: the name of a space, a path, or the space itself."""
    base: Annotated[dict[str, JsonValue], Field(default_factory=dict)]
    """Fixed settings of every trial: any part of TrialConfig."""
    objective: Objectives = (Objective(),)
    """In a file: one mapping, or a list for several objectives, of which schedulers judge by the
    first."""
    constraints: tuple[MetricConstraint, ...] = ()
    """Bounds of measured metrics, which what is recommended keeps."""
    search: SearchConfig
    budget: Budget
    cluster: ClusterConfig = ClusterConfig()
    target: Budget | None = None
    """Budget that the recommendation is for; by default ten times what the study may spend."""
    overrides: tuple[str, ...] = ()
    """`--set` options that were applied to the file."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        metrics = [objective.metric for objective in self.objective]
        if len(set(metrics)) < len(metrics):
            raise ValueError(f"objective names each metric once (got {', '.join(metrics)})")
        search = self.search
        if len(metrics) > 1 and search.algorithm in ONE_OBJECTIVE:
            raise ValueError(
                f"algorithm {search.algorithm!r} has one objective: with {len(metrics)} use "
                "random, grid, bayesian or evolution"
            )
        if len(metrics) > 1 and search.scheduler.name in ONE_OBJECTIVE:
            raise ValueError(
                f"scheduler {search.scheduler.name!r} has one objective: with {len(metrics)} use "
                "none, asha, octaves, hyperband or median, which judge by the first"
            )
        return self

    @property
    def first_objective(self) -> Objective:
        """What schedulers judge by, and what the best trial is best at."""
        return self.objective[0]

    @property
    def target_budget(self) -> Budget:
        """What the recommendation is for: the target, or ten times what the study may spend."""
        if self.target is not None:
            return self.target
        return Budget(**{n: _TARGET_FACTOR * v for n, v in self.budget.limits().items()})

    @property
    def folder_name(self) -> str:
        """The name with every character but letters, digits, `.`, `_` and `-` replaced by `-`."""
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in self.name)
        return safe.strip(".-") or "study"

    @property
    def digest(self) -> str:
        """Short hash of everything that decides what is run; a changed study has another."""
        content = self.model_dump(
            mode="json", exclude={"question", "budget", "target", "overrides"}
        )
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def load_study(
    source: str | Path, overrides: Sequence[str] = (), *, search_space: str | None = None
) -> Study:
    """Return the study of a YAML file, checked as a whole.

    Args:
        source: A path, or the name of a file in `./studies/` or of a shipped study.
        overrides: `a.b=value` texts that replace what the file says; they are recorded.
        search_space: Name or path of a space that replaces the file's.

    Raises:
        NotFoundError: There is no such study.
        ConfigError: With every problem of the file, one per line.
    """
    path = library.find("studies", str(source))
    settings = list(overrides)
    if search_space is not None:
        settings.append(f"search_space={json.dumps(search_space)}")
    document = read_yaml(path)
    chosen = [text for text in settings if text.partition("=")[0].strip() == "search_space"]
    document = _with_space(document.with_overrides(chosen))
    document = _with_scheduler(
        document.with_overrides([text for text in settings if text not in chosen])
    )
    if settings:
        document.data["overrides"] = settings
    study = validate(document, Study)
    problems = _path_problems(study, document) or _point_problems(study, document)
    if problems:
        raise problems_error(document.source, "Study", problems)
    return study


def study_from_json(text: str) -> Study:
    """Return the study that `study.json` holds.

    Raises:
        ConfigError: It does not hold one.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"study.json is not valid JSON: {error}.") from error
    return validate(Document(source="study.json", data=data), Study)


def trial_config(study: Study, point: Mapping[str, JsonValue]) -> TrialConfig:
    """Return the trial that a point of the study's space stands for, its length in tokens.

    Raises:
        ConfigError: The point breaks a constraint or a rule of TrialConfig.
    """
    broken = study.search_space.broken_constraint(point, study.base)
    if broken is not None:
        raise ConfigError(f"breaks the constraint {broken!r}.")
    data = merge(study.base, point)
    config = validate(Document(source="point", data=data), TrialConfig)
    return config.replace(
        train=config.train.replace(
            tokens=num_train_tokens(config), tokens_per_param=None, flops=None
        )
    )


def _with_scheduler(document: Document) -> Document:
    """Return the document with a scheduler given by name written out as a mapping."""
    search = document.data.get("search")
    if not isinstance(search, dict) or not isinstance(search.get("scheduler"), str):
        return document
    scheduler = {"name": search["scheduler"]}
    return replace(document, data=document.data | {"search": search | {"scheduler": scheduler}})


def _with_space(document: Document) -> Document:
    """Return the document with a named space replaced by its file's content."""
    name = document.data.get("search_space")
    if not isinstance(name, str):
        return document
    try:
        inner = read_yaml(library.find("search_spaces", name))
    except ConfigError as error:
        place = document.place(("search_space",))
        raise problems_error(
            document.source, "Study", [f"{place}: search_space: {error.message}"]
        ) from error
    places = dict(document.places)
    places.update({("search_space", *key): place for key, place in inner.places.items()})
    return replace(
        document,
        data=document.data | {"search_space": inner.data},
        places=places,
        problems=document.problems + inner.problems,
    )


def _path_problems(study: Study, document: Document) -> list[str]:
    """Return the parameters that TrialConfig does not know."""
    problems = []
    for name in study.search_space.parameters:
        parts = tuple(name.split("."))
        for i, part in enumerate(parts):
            known = field_names(TrialConfig, parts[:i])
            if known and part not in known:
                place = document.place(("search_space", "parameters", name))
                prefix = ".".join(parts[:i])
                full = [f"{prefix}.{k}" if prefix else k for k in known]
                problems.append(
                    f"{place}: {name}: no such setting of a trial. "
                    + did_you_mean(".".join(parts[: i + 1]), full)
                )
                break
    for key in ("within", "perturb"):
        for name in getattr(study.search.scheduler, key):
            if name not in study.search_space.parameters:
                place = document.place(("search", "scheduler", key))
                problems.append(
                    f"{place}: search.scheduler.{key}: {name!r} is not a parameter of the space. "
                    + did_you_mean(name, study.search_space.parameters)
                )
    return problems


def _point_problems(study: Study, document: Document) -> list[str]:
    """Return what is wrong with the space if no probed point of it is a valid trial."""
    points = quasi_random_points(study.search_space, study.base, seed=0)
    found: list[str] = []
    for _ in range(_NUM_PROBES):
        point = next(points)
        try:
            trial_config(study, point)
        except ConfigError as error:
            found.append(_at_its_place(study, point, document, error))
        else:
            return []
    shown = list(dict.fromkeys(found))[:3]
    return [f"{text} (and no other point of the search space is a valid trial)" for text in shown]


def _at_its_place(
    study: Study, point: Mapping[str, JsonValue], document: Document, error: ConfigError
) -> str:
    """Return the problems of one point with the places in the files that they come from."""
    data = merge(study.base, point)
    places: dict[Key, str] = {(): document.place(("base",))}
    for key, place in document.places.items():
        if key[:1] == ("base",):
            places[key[1:]] = place
    for name in point:
        parts: Key = tuple(name.split("."))
        places[parts] = document.place(("search_space", "parameters", name))
    try:
        validate(Document(source=document.source, data=data, places=places), TrialConfig)
    except ConfigError as placed:
        lines = [line.strip() for line in placed.message.split("\n")[1:]]
        return "\n  ".join(line.replace(": (top): ", ": ") for line in lines)
    values = {name: value_at(data, name) for name in point}
    return f"{document.place(('search_space',))}: {values}: {error.message}"
