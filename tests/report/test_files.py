"""The files of a report agree with each other and with the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest

from planner.cli import main
from planner.recommendation import recommend, run_law
from planner.report import write_report
from planner.report.contents import gather
from planner.report.summary import commands
from planner.report.tables import trials
from planner.results import Results, read_results
from planner.run_folder import RunFolder
from planner.trial import TrialState


@pytest.fixture(scope="module")
def document(reported: RunFolder) -> dict[str, object]:
    return json.loads((reported.report / "report.json").read_text())  # type: ignore[no-any-return]


def test_csv_parquet_and_json_hold_the_same_trials(
    reported: RunFolder, document: dict[str, list[dict[str, object]]]
) -> None:
    parquet = pd.read_parquet(reported.report / "results.parquet")
    csv = pd.read_csv(reported.report / "results.csv")
    rows = document["trials"]
    assert list(parquet.columns) == list(csv.columns) == list(rows[0])
    assert len(parquet) == len(csv) == len(rows) == len(read_results(reported).trials)
    for name in ("trial", "state", "val_loss", "num_params", "train_flops", "usd"):
        columns = [
            parquet[name].astype(object).where(parquet[name].notna(), None).tolist(),
            csv[name].astype(object).where(csv[name].notna(), None).tolist(),
            [row[name] for row in rows],
        ]
        if name in ("trial", "state"):
            assert columns[0] == columns[1] == columns[2]
        else:
            for values in columns[1:]:
                known = [x for x in columns[0] if x is not None]
                assert [x for x in values if x is not None] == pytest.approx(known, rel=1e-12)
                assert [x is None for x in values] == [x is None for x in columns[0]]


def test_what_varied_comes_first_in_the_table(reported: RunFolder) -> None:
    columns = list(pd.read_csv(reported.report / "results.csv").columns)
    varied = list(read_results(reported).study.search_space.parameters)
    assert columns[:2] == ["trial", "state"]
    assert columns[2 : 2 + len(varied)] == varied


def test_report_json_carries_schema_recommendation_law_and_what_was_spent(
    reported: RunFolder, document: dict[str, dict[str, object]]
) -> None:
    results = read_results(reported)
    answer = recommend(
        run_law(reported, results), results.study.target_budget, results.study, results=results
    )
    assert document["schema"] == "planner.report/1"
    assert document["recommendation"] == json.loads(answer.to_json())
    assert document["law"]["schema"] == "planner.scaling-law/2"
    spent = document["spent"]["device_hours_by_outcome"]
    assert isinstance(spent, dict)
    assert sum(spent.values()) == pytest.approx(results.spend.device_hours)
    assert spent["lost"] > 0.01


def test_markdown_is_short_and_holds_no_html(reported: RunFolder) -> None:
    text = (reported.report / "report.md").read_text()
    assert text.startswith("# &lt;script&gt;alert(1)&lt;/script&gt;")
    assert len(text) < 65_536
    assert "<" not in text.split("```")[0]
    assert "| recommended |" in text
    tables = [block for block in text.split("\n\n") if block.lstrip().startswith("|")]
    assert tables
    assert all(block.strip().count("\n") <= 16 for block in tables)


def test_the_page_shows_at_most_fifty_trials_the_best_first(reported: RunFolder) -> None:
    contents = gather(reported)
    many = tuple(
        replace(trial, trial=f"{trial.trial}-{copy}")
        for trial in contents.results.trials
        for copy in range(3)
    )
    results: Results = replace(contents.results, trials=many)
    table = trials(replace(contents, results=results))
    losses = [row[table.headings.index("val loss")] for row in table.rows]
    states = [row[table.headings.index("state")] for row in table.rows]
    assert len(table.rows) == 50
    assert f"50 of {len(many)}" in table.note
    completed = [float(x) for x, s in zip(losses, states, strict=True) if s == "completed"]
    assert completed == sorted(completed)
    assert table.headings[1:4] == ("layers x width", "tokens", "learning rate")


def test_shares_of_the_spend_sum_to_it(reported: RunFolder) -> None:
    contents = gather(reported)
    completed = sum(t.device_hours or 0.0 for t in contents.with_state(TrialState.COMPLETED))
    assert contents.spent_device_hours["completed"] == pytest.approx(completed)
    assert sum(contents.spent_device_hours.values()) == pytest.approx(
        contents.results.spend.device_hours
    )


def test_the_verb_names_the_page_and_its_files(
    reported: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(reported.path)]) == 0
    assert capsys.readouterr().out.strip() == str(reported.report / "index.html")
    assert main(["report", str(reported.path), "--json"]) == 0
    names = json.loads(capsys.readouterr().out)["files"]
    assert len(names) == 5


def test_a_report_of_nothing_is_refused(
    reported: RunFolder, run_factory: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "nowhere"]) == 3
    empty = run_factory(fitted=False)
    empty.results.unlink()
    assert main(["report", str(empty.path)]) == 3
    assert "no results yet" in capsys.readouterr().err


def test_the_commands_to_do_it_again_are_quoted_for_the_shell(reported: RunFolder) -> None:
    text = (reported.report / "report.md").read_text()
    assert "planner sweep '<script>alert(1)</script>' --name script-alert-1---script" in text


def test_a_run_is_found_by_name(reported: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANNER_RUNS", str(reported.path.parent))
    assert write_report(reported.name) == reported.report / "index.html"


def test_a_law_and_a_recommendation_of_other_rows_are_made_again(
    run_factory: Callable[..., RunFolder],
) -> None:
    folder = run_factory()
    options = ["--budget", "2e15 flops", "--max-params", "60k"]
    assert main(["recommend", str(folder.path), *options]) == 0
    before = gather(folder)
    assert before.recommendation is not None
    fewer = tuple(
        replace(trial, state=TrialState.STOPPED) if trial.trial == "t003" else trial
        for trial in before.results.trials
    )
    replace(before.results, trials=fewer).write()
    after = gather(folder)
    assert after.law is not None
    assert before.law is not None
    assert after.recommendation is not None
    assert after.law.num_rows == before.law.num_rows - 1
    assert after.recommendation.budget == {"flops": 2e15}
    assert after.recommendation.choice.num_params <= 60_000
    assert any(line.endswith("--max-params 60000") for line in commands(after))
    assert after.recommendation.law_digest != before.recommendation.law_digest


def test_a_run_whose_trials_were_all_stopped_early_is_drawn(
    run_factory: Callable[..., RunFolder],
) -> None:
    folder = run_factory(fitted=False)
    results = read_results(folder)
    early = tuple(
        replace(t, state=TrialState.STOPPED) if t.state is TrialState.COMPLETED else t
        for t in results.trials
    )
    replace(results, trials=early).write()
    page = write_report(folder).read_text()
    assert "There is no recommendation" in page
    assert "Validation loss of" in page


def test_a_run_in_which_nothing_completed_has_a_report(
    run_factory: Callable[..., RunFolder],
) -> None:
    folder = run_factory(fitted=False)
    results = read_results(folder)
    dead = tuple(
        replace(t, state=TrialState.FAILED, val_loss=None, train_flops=None) for t in results.trials
    )
    replace(results, trials=dead, curves=()).write()
    page = write_report(folder).read_text()
    assert "There is no recommendation" in page
    assert "no trial completed" in page
    assert "<svg" not in page
