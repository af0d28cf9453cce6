"""Every mistake a user can make gives one clear message, its exit code, and no traceback."""

import json
import os
import subprocess
import sys

import pytest

from planner.cli import main
from planner.cli.recommend import wanted_budget
from planner.errors import ConfigError
from planner.run_folder import RunFolder

MODEL = {"num_layers": 1, "d_model": 16, "num_heads": 2}


def run(capfd, *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    shown = capfd.readouterr().err
    assert "Traceback" not in shown
    return code, shown


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("schedular=x", 2, "schedular: unknown key"),
        ("search.schedular=x", 2, "unknown key; did you mean 'scheduler'?"),
        ("search.num_trials=many", 2, "valid integer (got 'many')"),
        ("search.scheduler=ahsa", 2, "Did you mean 'asha'?"),
        ("search_space=nowhere", 2, "no search space named 'nowhere'"),
        ("search_space.parameters={}", 2, "at least one parameter"),
        ("cluster.device=h1000", 2, "no device named 'h1000'"),
        ("budget={}", 2, "at least one of flops"),
        ("budget.device_hours=1e-9", 5, "at least one trial"),
        ("base.layout.data_parallel=4", 5, "4 workers, 2 devices"),
        ("base.optimizer.learning_rate=-1", 2, "greater than 0"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "sweep"])
def test_a_mistake_in_a_study(write_study, tmp_path, capfd, verb, override, code, message):
    space = {"name": "s", "parameters": {"model": {"choice": [MODEL]}}}
    path = str(write_study(search_space=space))
    runs = [] if verb == "plan" else ["--runs", str(tmp_path / "runs")]
    found, shown = run(capfd, verb, path, "--set", override, *runs)
    assert (found, message in shown) == (code, True), shown
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "{}/losses.csv/laws.json"], "losses.csv"),
        (["--seed", "-1"], "'--seed'"),
    ],
)
def test_a_mistake_in_a_fit(tmp_path, capfd, arguments, message):
    path = tmp_path / "losses.csv"
    rows = [(n, d, 1.7 + n**-0.3 + d**-0.3) for n in (1e6, 1e7, 1e8) for d in (1e8, 1e9, 1e10)]
    path.write_text(
        "num_params,num_tokens,loss\n" + "\n".join(f"{n},{d},{loss}" for n, d, loss in rows)
    )
    options = [text.format(tmp_path) for text in arguments]
    code, shown = run(
        capfd, "fit", str(path), "--form", "chinchilla", "--draws", "10", "--no-plots", *options
    )
    assert code == 2
    assert message in shown


def test_a_repeated_key(tmp_path, capfd):
    path = tmp_path / "study.yaml"
    path.write_text("name: a\nname: b\n")
    code, shown = run(capfd, "plan", str(path))
    assert code == 2
    assert "study.yaml:2: name: a key may be given once (first given at line 1)" in shown


@pytest.mark.parametrize("content", [None, ""], ids=["missing", "empty"])
def test_a_corpus_that_is_missing_or_empty(write_study, tmp_path, capfd, content):
    corpus = tmp_path / "corpus.txt"
    if content is not None:
        corpus.write_text(content)
    code, shown = run(
        capfd, "sweep", str(write_study()), "--set", f"base.data.corpus={corpus}",
        "--executor", "inline", "--runs", str(tmp_path / "runs"),
    )  # fmt: skip
    assert code != 0
    assert str(corpus) in shown


def test_a_run_folder_that_cannot_be_written(write_study, tmp_path, capfd):
    (tmp_path / "runs").write_text("a file")
    code, shown = run(
        capfd, "sweep", str(write_study()), "--executor", "inline",
        "--runs", str(tmp_path / "runs"),
    )  # fmt: skip
    assert code == 2
    assert "cannot write" in shown
    assert "--runs DIR" in shown


def test_a_deadline_of_no_time_at_all(small_study):
    with pytest.raises(ConfigError, match=r"(?s)deadline '0h'.*seconds: .*greater than 0"):
        wanted_budget(small_study, None, "0h")


def test_a_run_name_that_is_taken(small_study, write_study, tmp_path, capfd):
    RunFolder.create(small_study, root=tmp_path / "runs")
    code, shown = run(capfd, "sweep", str(write_study()), "--runs", str(tmp_path / "runs"))
    assert code == 2
    assert "a run named 'small' exists already" in shown
    assert "planner sweep --resume small" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "--resume", "nothing"],
        ["fit", "nothing"],
        ["recommend", "nothing"],
        ["report", "nothing"],
        ["status", "nothing"],
        ["jobs", "nothing"],
        ["plan", "nothing"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_name_that_nothing_answers_to_is_exit_code_3(arguments, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("PLANNER_RUNS", str(tmp_path))
    code, shown = run(capfd, *arguments)
    assert code == 3, shown
    assert "'nothing'" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweeep"], "Did you mean 'sweep'?"),
        (["plan", "quickstart", "--jsn"], "--json"),
        (["plan"], "STUDY"),
    ],
)
def test_a_mistake_on_the_command_line_is_exit_code_2(arguments, message, capfd):
    code, shown = run(capfd, *arguments)
    assert code == 2
    assert message in shown


def test_with_json_an_error_is_one_json_document_on_stdout(capfd):
    assert main(["plan", "nothing", "--json"]) == 3
    error = json.loads(capfd.readouterr().out)["error"]
    assert error["exit_code"] == 3
    assert "'nothing'" in error["message"]


def test_with_json_a_plan_is_one_json_document_on_stdout(capfd):
    assert main(["plan", "quickstart", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["schema"] == "planner.plan/1"
    assert len(plan["candidates"]) == 24


def test_debug_shows_the_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "planner", "--debug", "plan", "nothing"],
        capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert "Traceback" in done.stderr
    assert done.returncode != 0
