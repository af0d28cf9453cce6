"""The verbs around a sweep: sweep, status, rehearse, and the progress that they show."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.cli import main
from planner.cli.progress import ProgressPrinter
from planner.study import Study
from planner.tuning import sweep


def test_a_sweep_prints_one_json_document_and_its_status_agrees(
    write_study: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = ["--runs", str(tmp_path / "runs")]
    assert main(["sweep", str(write_study()), "--executor", "inline", "--json", *runs]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["schema"] == "planner.sweep/1"
    assert [trial["state"] for trial in shown["trials"]] == ["completed"] * 4
    assert main(["status", "small", "--json", *runs]) == 0
    status = json.loads(capfd.readouterr().out)
    assert (status["is"], status["counts"]) == ("finished", {"completed": 4})
    assert status["best"]["trial"] == shown["best"]["trial"]
    assert status["spend"]["flops"] == shown["spend"]["flops"]
    assert main(["status", *runs]) == 0
    assert "small\tfinished\t4 completed" in capfd.readouterr().out
    assert main(["sweep", "--resume", "small", "--executor", "inline", "-q", *runs]) == 0


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    write_study: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert main(["sweep", str(write_study()), "--dry-run", "--runs", str(runs)]) == 0
    assert "4 trials to run" in capfd.readouterr().out
    assert not runs.exists()


def test_a_dry_run_shows_the_plan_at_the_given_budget(
    write_study: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(write_study()), "--dry-run", "--budget", "7 usd, 3 h"]) == 2
    assert "a budget in usd needs to know what a device costs" in capfd.readouterr().err
    assert main(["sweep", str(write_study()), "--dry-run", "--budget", "3 h"]) == 0
    assert "Budget 3 h: 0% of it planned" in capfd.readouterr().out


@pytest.mark.parametrize("option", [["--set", "search.seed=7"], ["--name", "other"]])
def test_what_a_resumed_run_cannot_take_is_refused(
    option: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "--resume", "small", *option, "--runs", str(tmp_path)]) == 2
    assert "a run resumes with its own study" in (shown := capfd.readouterr().err) or (
        "a run keeps its name" in shown
    )


def test_a_package_that_is_not_installed_is_named(
    write_study: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "planner.tuning.ray_executor", raising=False)
    assert main(["sweep", str(write_study()), "--runs", str(tmp_path / "runs")]) == 2
    assert "ray is not installed.\n  pip install 'planner[train]'" in capfd.readouterr().err
    assert not (tmp_path / "runs" / "small").exists()


def test_a_sweep_needs_a_study_or_a_run(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep"]) == 2
    assert "give a STUDY, or --resume NAME" in capfd.readouterr().err


def test_a_resume_with_a_changed_study_lists_the_differences(
    small_study: Study,
    write_study: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sweep(small_study, executor="inline", root=tmp_path / "runs")
    code = main(
        ["sweep", str(write_study()), "--set", "search.seed=7", "--resume", "small",
         "--executor", "inline", "--runs", str(tmp_path / "runs")]
    )  # fmt: skip
    shown = capfd.readouterr().err
    assert code == 2
    assert "search.seed: 0 -> 7" in shown
    assert "Traceback" not in shown


def test_rehearsing_is_deterministic_and_stays_within_the_budget(
    write_study: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(write_study(budget={"flops": 3e8}))
    shown = []
    for _ in range(2):
        assert main(["rehearse", path, "--no-probe", "--json"]) == 0
        shown.append(json.loads(capfd.readouterr().out))
    assert shown[0] == shown[1]
    assert 0 < shown[0]["spend"]["flops"] <= 3e8
    assert shown[0]["counts"].get("completed", 0) >= 1


def test_where_there_is_no_terminal_progress_is_a_line_per_finished_trial(
    small_study: Study, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with ProgressPrinter(is_terminal=False) as printer:
        sweep(small_study, executor="inline", root=tmp_path, on_event=printer)
    lines = capfd.readouterr().err.strip().split("\n")
    assert [line.split()[0] for line in lines] == ["t000", "t001", "t002", "t003"]
    assert all("spent" in line and "best" in line for line in lines)


def test_on_a_terminal_progress_is_a_panel_with_the_budget(
    small_study: Study, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with ProgressPrinter(is_terminal=True) as printer:
        sweep(small_study, executor="inline", root=tmp_path, on_event=printer)
    shown = capfd.readouterr().err
    assert "device-hours" in shown
    assert "4 completed" in shown
