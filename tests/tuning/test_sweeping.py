"""One session of a run, with the engine in this process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.budget import Budget
from planner.errors import ConfigError, InfeasibleError, TrialError
from planner.results import Results, read_results
from planner.run_folder import RunFolder
from planner.study import Study
from planner.trial import TrialState
from planner.tuning import resume, sweep
from planner.tuning.inline import InlineExecutor
from planner.tuning.ledger import read_lines
from planner.tuning.lock import locked
from planner.tuning.outcome import Progress, standing_of

MakeStudy = Callable[..., Study]

TIMES = [
    "data_wait_seconds", "communication_seconds", "optimizer_seconds", "compile_seconds",
    "utilisation_fraction", "elapsed_seconds", "train_seconds", "tokens_per_second", "device_hours", "mfu",
    "peak_memory_bytes", "num_attempts",
]  # fmt: skip


class Crash(BaseException):
    """What a test raises in the place of SIGKILL: nothing in the driver catches it."""


def crash_after(event: str, count: int) -> Callable[[Progress], None]:
    seen = []

    def watch(progress: Progress) -> None:
        if progress.event == event:
            seen.append(progress)
        if len(seen) == count:
            raise Crash

    return watch


def table(results: Results) -> dict[str, Any]:
    frame = results.to_frame().drop(columns=TIMES)
    return json.loads(frame.to_json(orient="records"))


def test_a_sweep_writes_its_results_and_its_bill(make_study: MakeStudy, tmp_path: Path) -> None:
    events: list[str] = []
    study = make_study()
    results = sweep(
        study,
        executor="inline",
        root=tmp_path,
        on_event=lambda progress: events.append(progress.event),
    )
    assert [trial.state for trial in results.trials] == [TrialState.COMPLETED] * 4
    assert results.spend.device_hours == pytest.approx(sum(t.device_hours for t in results.trials))
    assert results.spend.flops == pytest.approx(sum(t.train_flops for t in results.trials))
    assert results.best() is not None
    assert len(results.curves) == 16
    assert {"proposed", "up", "report", "ended"} <= set(events)
    read = read_results(results.folder)
    assert read.trials == results.trials
    assert read.spend == results.spend
    assert standing_of(results.folder).word == "finished"


@pytest.mark.parametrize(
    ("event", "count"), [("report", 2), ("report", 7), ("ended", 2), ("up", 3)]
)
def test_a_sweep_that_died_and_was_resumed_gives_the_table_of_one_that_did_not(
    make_study: MakeStudy, tmp_path: Path, event: str, count: int
) -> None:
    search = {"algorithm": "grid", "max_concurrent": 1,
              "scheduler": {"name": "asha", "reduction_factor": 2}}  # fmt: skip
    study = make_study(search=search)
    undisturbed = sweep(study, executor="inline", name="whole", root=tmp_path)
    with pytest.raises(Crash):
        sweep(
            study, executor="inline", name="torn", root=tmp_path, on_event=crash_after(event, count)
        )
    resumed = resume("torn", executor="inline", root=tmp_path)
    assert table(resumed) == table(undisturbed)
    ended = [line["trial"] for line in read_lines(resumed.folder.ledger) if line["kind"] == "ended"]
    assert sorted(ended) == sorted(set(ended))
    assert resumed.spend.device_hours == pytest.approx(
        sum(t.device_hours or 0 for t in resumed.trials)
    )
    assert resumed.spend.flops >= sum(t.train_flops or 0 for t in resumed.trials) * (1 - 1e-9)


def test_a_trial_goes_on_from_its_checkpoint(make_study: MakeStudy, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        sweep(make_study(), executor="inline", root=tmp_path, on_event=crash_after("report", 3))
    results = resume("tiny", executor="inline", root=tmp_path)
    lines = read_lines(results.folder.ledger)
    started = [line for line in lines if line["kind"] == "up" and line["trial"] == "t000"]
    assert [line["flops"] > 0 for line in started] == [False, True]
    assert results.trials[0].num_attempts == 2


def test_a_sweep_that_cannot_start_leaves_the_folder_as_it_was(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    study = make_study(base=make_study().base | {"layout": {"data_parallel": 2}})
    with pytest.raises(InfeasibleError, match="at least 2 workers, 1 devices"):
        sweep(study, executor=OneDevice(), root=tmp_path)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


class OneDevice(InlineExecutor):
    def num_devices(self, wanted: int, device: str) -> int:
        return 1


def test_a_run_that_was_interrupted_before_its_first_trial_is_not_finished(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    results = sweep(make_study(), executor="inline", root=tmp_path)
    lines = read_lines(results.folder.ledger)[:2]
    lines += [{"kind": "interrupted", "reason": "SIGINT", "t": 1.0}]
    lines += [{"kind": "session_ended", "t": 1.0}]
    results.folder.ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert standing_of(results.folder).word == "interrupted"


def test_resuming_a_finished_run_runs_nothing(make_study: MakeStudy, tmp_path: Path) -> None:
    first = sweep(make_study(), executor="inline", root=tmp_path)
    again = resume("tiny", executor="inline", root=tmp_path)
    assert table(again) == table(first)
    kinds = [line["kind"] for line in read_lines(again.folder.ledger)]
    assert kinds.count("started") == 4


def test_a_run_resumes_with_its_own_study_only(make_study: MakeStudy, tmp_path: Path) -> None:
    sweep(make_study(), executor="inline", root=tmp_path)
    changed = make_study(search={"algorithm": "grid", "max_concurrent": 2})
    with pytest.raises(ConfigError, match=r"search\.max_concurrent: 1 -> 2"):
        resume("tiny", study=changed, executor="inline", root=tmp_path)
    same = make_study(question="Worded otherwise?")
    assert resume("tiny", study=same, executor="inline", root=tmp_path).trials


def test_a_larger_budget_extends_a_run(make_study: MakeStudy, tmp_path: Path) -> None:
    flops = sweep(make_study(), executor="inline", name="whole", root=tmp_path).spend.flops
    short = sweep(make_study(budget={"flops": flops * 0.6}), executor="inline", root=tmp_path)
    assert short.count(TrialState.COMPLETED) == 2
    assert short.count(TrialState.PLANNED) == 2
    assert "the budget does not pay for it" in (short.trials[-1].reason or "")
    longer = resume("tiny", budget=Budget(flops=flops), executor="inline", root=tmp_path)
    assert longer.count(TrialState.COMPLETED) == 4


def test_a_budget_of_seconds_stops_a_trial_at_its_next_report_and_keeps_its_checkpoint(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    base = make_study().base | {
        "train": {"tokens": 20_480, "num_validations": 40, "validation_tokens": 256}
    }
    study = make_study(base=base, budget={"seconds": 5.0})

    def slow_down(progress: Progress) -> None:
        if progress.event == "report":
            time.sleep(0.4)

    results = sweep(study, executor="inline", root=tmp_path, on_event=slow_down)
    stopped = results.trials[0]
    assert stopped.state is TrialState.STOPPED
    assert stopped.reason == "the budget of 5.0 s is spent"
    assert list(results.folder.checkpoints.glob("t000/step-*/state.json"))
    assert sum(point.study_seconds > 5.0 for point in results.curves) <= 1


def test_a_run_has_one_driver(make_study: MakeStudy, tmp_path: Path) -> None:
    results = sweep(make_study(), executor="inline", root=tmp_path)
    with locked(results.folder.path):
        assert standing_of(results.folder).word == "running"
        with pytest.raises(ConfigError, match="is being driven by process"):
            resume("tiny", executor="inline", root=tmp_path)
    assert resume("tiny", executor="inline", root=tmp_path).trials


def test_a_torn_last_line_is_recovered_and_said(make_study: MakeStudy, tmp_path: Path) -> None:
    first = sweep(make_study(), executor="inline", root=tmp_path)
    with first.folder.ledger.open("ab") as file:
        file.write(b'{"kind":"ended","tri')
    again = resume("tiny", executor="inline", root=tmp_path)
    assert table(again) == table(first)
    assert any("was torn" in note for note in standing_of(again.folder).notes)


def test_when_nothing_can_train_the_reason_is_said_once(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    base = make_study().base | {"data": {"corpus": str(tmp_path / "nothing.txt")}}
    with pytest.raises(TrialError, match=r"no trial could train; 3 of 3 failed, .*nothing\.txt"):
        sweep(make_study(base=base), executor="inline", root=tmp_path)
    assert standing_of(RunFolder.open("tiny", tmp_path)).word == "gave up"


def test_importing_the_sweep_loads_neither_ray_nor_optuna_nor_torch() -> None:
    code = (
        "import sys, planner.tuning, planner.tuning.sweeping; "
        "assert not {'ray', 'optuna', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
