"""Warm starts: trials of former runs as points of a new study's space, kept in its folder.

They are read once, when a run starts, and written to `earlier.json`: a former run that goes on
later does not change what the search of this one was told.
"""

from __future__ import annotations

import json
from pathlib import Path

from planner.errors import ConfigError
from planner.objectives import costs_of
from planner.results import read_results
from planner.run_folder import RunFolder
from planner.search_space import Point, value_at
from planner.study import Study
from planner.trial import TrialResult
from planner.tuning.searchers import Earlier

__all__ = ["gather_earlier", "keep_earlier", "kept_earlier", "point_of"]


def gather_earlier(study: Study, root: Path | None) -> list[Earlier]:
    """Return the finished trials of the runs that a study names, those of its space.

    A trial counts if it completed, kept the constraints, has every parameter of the space at a
    value inside it, and measured the objectives.

    Raises:
        NotFoundError: There is no such run, or it has no results.
        ConfigError: None of the trials of a run lies in the space.
    """
    found: list[Earlier] = []
    for name in study.search.earlier:
        results = read_results(RunFolder.open(name, root))
        mine = [
            Earlier(point=point, costs=costs)
            for trial in results.completed()
            if (point := point_of(study, trial)) is not None
            and (costs := costs_of(study.objective, trial)) is not None
        ]
        if not mine:
            raise ConfigError(
                f"a search starts from earlier trials inside its space: none of the "
                f"{len(results.trials)} trials of run {name!r} completed inside it.",
                hint="Take that run out of search.earlier, or widen the space.",
            )
        found += mine
    return found


def point_of(study: Study, trial: TrialResult) -> Point | None:
    """Return the point of this study's space that a trial is, or None."""
    point: Point = {}
    for name, distribution in study.search_space.parameters.items():
        if not study.search_space.holds(distribution.when, point, study.base):
            continue
        value = trial.point.get(name)
        if name not in trial.point or not distribution.contains(value):
            value = value_at(trial.config, name)
        if isinstance(value, dict):
            value = next((each for each in distribution.choice or () if _agrees(each, value)), None)
        if not distribution.contains(value):
            return None
        point[name] = value
    return point


def _agrees(choice: object, value: dict[str, object]) -> bool:
    """Return whether a resolved mapping has every setting of a choice."""
    return isinstance(choice, dict) and all(value.get(key) == choice[key] for key in choice)


def keep_earlier(folder: RunFolder, earlier: list[Earlier]) -> None:
    """Write what a run starts from into its folder."""
    rows = [{"point": each.point, "costs": each.costs} for each in earlier]
    folder.write("earlier.json", json.dumps(rows, indent=1))


def kept_earlier(folder: RunFolder) -> list[Earlier]:
    """Return what a run started from."""
    if not folder.earlier.is_file():
        return []
    rows = json.loads(folder.earlier.read_text(encoding="utf-8"))
    return [Earlier(point=row["point"], costs=tuple(row["costs"])) for row in rows]
