from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.results import Results
from planner.study import Study
from planner.trial import TrialState
from planner.tuning import resume, sweep
from planner.tuning.inline import InlineExecutor
from planner.tuning.outcome import Progress, standing_of

MakeStudy = Callable[..., Study]

NUM_BYTES = 1000


class Crash(BaseException):
    """What a test raises in the place of SIGKILL."""


@pytest.fixture
def executor(trainers: Any) -> InlineExecutor:
    """Return an executor whose trials write checkpoints of a thousand bytes."""
    return InlineExecutor(trainers.follow_with_bytes)


def kept(results: Results) -> list[str]:
    found = results.folder.checkpoints.glob("t*/step-*/state.json")
    return sorted(str(path.parent.relative_to(results.folder.checkpoints)) for path in found)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.pt"))


def with_policy(study: Study, **policy: Any) -> Study:
    search = study.search.model_dump(mode="json") | {"checkpoints": policy}
    return study.replace(search=search)


def test_a_quota_holds_and_drops_the_worst_of_what_has_ended(
    make_study: MakeStudy, tmp_path: Path, executor: InlineExecutor
) -> None:
    most = []

    def watch(progress: Progress) -> None:
        most.append(size(tmp_path / "tiny" / "checkpoints"))

    study = with_policy(make_study(), max_bytes=2.5 * NUM_BYTES)
    results = sweep(study, executor=executor, root=tmp_path, on_event=watch)
    assert results.count(TrialState.COMPLETED) == 4
    # One more is there between its writing and the look that follows.
    assert max(most) <= 4 * NUM_BYTES
    assert size(results.folder.checkpoints) <= 2.5 * NUM_BYTES
    best = results.best()
    assert best is not None
    assert any(path.startswith(best.trial) for path in kept(results))


def test_only_the_best_keep_their_checkpoint_where_that_is_asked_for(
    make_study: MakeStudy, tmp_path: Path, executor: InlineExecutor
) -> None:
    study = with_policy(make_study(), keep_best=1)
    results = sweep(study, executor=executor, root=tmp_path)
    best = results.best()
    assert best is not None
    assert {path.split("/")[0] for path in kept(results)} == {best.trial}


@pytest.mark.parametrize("max_bytes", [0.5 * NUM_BYTES, 4.5 * NUM_BYTES])
def test_a_population_never_loses_what_its_members_go_on_from(
    make_study: MakeStudy, tmp_path: Path, executor: InlineExecutor, trainers: Any, max_bytes: float
) -> None:
    free = trainers.small_study_of(make_study, "grid", "pbt")
    whole = sweep(free, executor=executor, name="whole", root=tmp_path)
    study = with_policy(free, max_bytes=max_bytes)
    seen = []

    def crash(progress: Progress) -> None:
        seen.append(progress.event)
        if seen.count("generation") == 2:
            raise Crash

    with pytest.raises(Crash):
        sweep(study, executor=executor, root=tmp_path, on_event=crash)
    results = resume("tiny", executor=executor, root=tmp_path)
    assert [(t.trial, t.val_loss, t.reason) for t in results.trials] == [
        (t.trial, t.val_loss, t.reason) for t in whole.trials
    ]
    notes = standing_of(results.folder).notes
    assert any("more than search.checkpoints.max_bytes" in n for n in notes) == (max_bytes < 1000)


def test_a_trial_that_the_budget_stopped_keeps_its_checkpoint(
    make_study: MakeStudy, tmp_path: Path, executor: InlineExecutor
) -> None:
    flops = sweep(make_study(), executor=executor, name="whole", root=tmp_path).spend.flops
    study = with_policy(
        make_study(budget={"flops": 0.4 * flops}), max_bytes=1.0, keep_best=0
    )  # fmt: skip
    results = sweep(study, executor=executor, root=tmp_path)
    ended = {t.trial for t in results.trials if t.state is TrialState.COMPLETED}
    assert ended
    assert not ended & {path.split("/")[0] for path in kept(results)}
