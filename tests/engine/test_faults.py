"""Workers that die: the trial ends and says so, nothing is left behind, and it can be resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from planner.engine import train
from planner.trial import TrialState

LONG = {"tokens": 16 * 8 * 100_000, "num_validations": 20_000}


def start(config: dict, folder: Path) -> subprocess.Popen[str]:
    """Run the engine on its own, as a user does."""
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return subprocess.Popen(
        [sys.executable, "-m", "planner.engine", str(path), "--out", str(folder / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_until(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def has_checkpoint(folder: Path) -> bool:
    return any((folder / "out" / "checkpoints").glob("step-*/state.json"))


@pytest.mark.slow
def test_a_killed_worker_ends_the_trial_in_failed_and_leaves_no_process(settings, tmp_path):
    first = start(settings(train=LONG, layout={"data_parallel": 2}), tmp_path)
    try:
        wait_until(lambda: has_checkpoint(tmp_path))
        (other,) = psutil.Process(first.pid).children()
        other.kill()
        out, _ = first.communicate(timeout=30)
        assert first.returncode == 1
        result = json.loads(out)
        assert result["state"] == "failed"
        assert "communication between workers failed" in result["reason"]
        assert not psutil.pid_exists(other.pid)
    finally:
        first.kill()
        first.wait()


@pytest.mark.slow
def test_the_other_workers_end_with_the_first(settings, tmp_path):
    first = start(settings(train=LONG, layout={"data_parallel": 2}), tmp_path)
    wait_until(lambda: has_checkpoint(tmp_path))
    (other,) = psutil.Process(first.pid).children()
    first.send_signal(signal.SIGKILL)
    first.communicate()

    def has_ended() -> bool:
        return not other.is_running() or other.status() == psutil.STATUS_ZOMBIE

    wait_until(has_ended, 30)
    assert has_ended()


@pytest.mark.slow
def test_a_kill_among_saves_loses_no_more_than_the_steps_since_one(small, settings, tmp_path):
    long = {"tokens": 16 * 8 * 200, "num_validations": 100}
    expected = train(small(train=long))
    config = settings(train=long)
    for _ in range(2):
        process = start(config, tmp_path)
        seen = len(list((tmp_path / "out" / "checkpoints").glob("step-*")))
        wait_until(lambda seen=seen: has_checkpoint(tmp_path) or seen > 0)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(config, tmp_path)
    out, _ = process.communicate(timeout=120)
    result = json.loads(out)
    assert result["state"] == TrialState.COMPLETED
    assert result["val_loss"] == expected.val_loss
    assert result["num_steps"] == expected.num_steps


def test_the_engine_alone_prints_one_document_and_writes_it(settings, tmp_path):
    process = start(settings(), tmp_path)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    result = json.loads(out)
    assert result["state"] == "completed"
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, "did you mean 'model'"),
        ({"data": {"corpus": "nowhere.txt"}}, "'nowhere.txt' does not exist"),
        (
            {"data": {"corpus": "nowhere.txt"}, "layout": {"data_parallel": 2}},
            "error on worker 1: data.corpus must be",
        ),
    ],
    ids=["unknown key", "missing corpus", "missing corpus, two workers"],
)
def test_a_mistake_gives_one_message_and_no_traceback(settings, tmp_path, change, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings() | change))
    done = subprocess.run(
        [sys.executable, "-m", "planner.engine", str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
