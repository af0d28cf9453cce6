"""What `planner recommend` writes and prints, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.budget import Budget
from planner.cli import main
from planner.config import parse_config
from planner.curves import ScalingLaw
from planner.planning import plan
from planner.recommendation import Recommendation, recommend, run_law, write_recommendation
from planner.results import Results, read_results
from planner.run_folder import RunFolder
from planner.study import Study, load_study, trial_config
from planner.trial import TrialConfig


@pytest.fixture(scope="module")
def fitted(run: RunFolder, law: ScalingLaw) -> RunFolder:
    """Return the run with its law written."""
    run.write("laws.json", law.to_json())
    return run


def test_the_exported_study_runs_the_recommended_trial_and_nothing_else(
    fitted: RunFolder, law: ScalingLaw, results: Results
) -> None:
    answer = recommend(law, Budget(flops=1e14), results.study, results=results)
    paths = write_recommendation(answer, fitted, results.study.cluster)
    study = load_study(paths[2])
    outlook = plan(study)
    assert [candidate.is_feasible for candidate in outlook.candidates] == [True]
    assert trial_config(study, outlook.candidates[0].point) == answer.config
    engine = json.loads(paths[1].read_text())
    assert parse_config(engine, TrialConfig) == answer.config
    assert Recommendation.from_json(paths[0].read_text()).choice == answer.choice


def test_the_law_of_the_run_folder_is_used(fitted: RunFolder, results: Results) -> None:
    assert run_law(fitted, results).to_json() == fitted.laws.read_text()


def test_the_verb_prints_the_sentence_and_warns_on_stderr(
    fitted: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", str(fitted.path), "--budget", "1e15 flops"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("Train a model of ")
    assert "recommended" in output.out
    assert "best trial so far" in output.out
    assert "unigram entropy of its corpus is 3.210" in output.out
    assert "warning: extrapolates" in output.err
    assert fitted.recommendation.is_file()


def test_json_is_one_document(fitted: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["recommend", str(fitted.path), "--budget", "1e15 flops", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert document["schema"] == "planner.recommendation/2"
    assert document["budget"] == {"flops": 1e15}


def test_a_deadline_and_a_cap_are_kept(
    fitted: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--deadline", "30min", "--max-params", "150k", "--json"]
    assert main(["recommend", str(fitted.path), *options]) == 0
    choice = json.loads(capsys.readouterr().out)["choice"]
    assert choice["seconds"] <= 1800
    assert choice["num_params"] <= 150_000


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_the_output_file_is_what_its_name_says(
    suffix: str, fitted: RunFolder, tmp_path: Path
) -> None:
    target = tmp_path / f"next{suffix}"
    assert main(["recommend", str(fitted.path), "--budget", "1e14 flops", "-o", str(target)]) == 0
    if suffix == ".json":
        assert parse_config(json.loads(target.read_text()), TrialConfig).train.tokens
    else:
        assert load_study(target).search.algorithm == "grid"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--budget", "1e5 flops"], 5, "Smallest change"),
        (["--budget", "12"], 2, "no unit"),
        (["--cluster", "8xh101"], 2, "no device named"),
        (["--max-params", "5"], 5, "at most 5 parameters"),
        (["--deadline", "1h30"], 2, "duration"),
    ],
    ids=["budget too small", "no unit", "unknown device", "cap too small", "bad duration"],
)
def test_what_cannot_be_done_is_one_message_with_its_exit_code(
    options: list[str], code: int, words: str, fitted: RunFolder,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(["recommend", str(fitted.path), *options]) == code
    output = capsys.readouterr()
    assert words in output.err
    assert "Traceback" not in output.err
    assert output.out == ""


def test_too_few_sizes_to_fit_end_with_exit_code_7(
    run_factory: Callable[..., RunFolder],
    study_factory: Callable[..., Study],
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = study_factory()
    space = study.search_space.model_dump(mode="json")
    space["parameters"]["model"]["choice"] = space["parameters"]["model"]["choice"][:2]
    few = run_factory(study_factory("two-sizes", search_space=space))
    assert main(["recommend", str(few.path)]) == 7
    assert "distinct num_params" in capsys.readouterr().err


def test_an_unknown_run_ends_with_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", "nowhere", "--runs", str(tmp_path)]) == 3
    assert "no run named 'nowhere'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_engine_trains_the_exported_trial_for_the_stated_tokens(
    run_factory: Callable[..., RunFolder],
    study_factory: Callable[..., Study],
    law: ScalingLaw,
    tmp_path: Path,
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"line {i} says {i * i % 97}\n" for i in range(20_000)))
    base = study_factory().base | {"data": {"corpus": str(corpus)}}
    folder = run_factory(study_factory("engine", base=base))
    results = read_results(folder)
    answer = recommend(law, Budget(flops=3e10), results.study, results=results, max_params=20_000)
    write_recommendation(answer, folder, results.study.cluster)
    command = [sys.executable, "-m", "planner.engine", str(folder.path / "exports/trial.json")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=True,
        timeout=120,
    )  # fmt: skip
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["state"] == "completed", done.stderr
    assert result["train_tokens"] == answer.choice.train_tokens
    assert result["num_params"] == answer.choice.num_params
    assert result["train_flops"] == pytest.approx(answer.choice.train_flops)
    assert result["num_workers"] == answer.choice.num_workers
