"""What a search found in the report: the front, the importances, the line of descent."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.report.contents import Contents
from planner.report.page import page_html, page_markdown
from planner.report.search_tables import ancestry, written
from planner.report.writing import report_data
from planner.results import Copy, read_results
from planner.run_folder import RunFolder
from planner.tuning.fronts import Front
from planner.tuning.importances import Importances
from planner.tuning.search_summary import SearchSummary
from planner.tuning.stopping import ExpectedGain


def copy_of(trial: str, donor: str, generation: int) -> Copy:
    return Copy(
        trial=trial, donor=donor, generation=generation, train_flops=generation * 1e9,
        fidelity=generation / 10, study_seconds=float(generation), loss=3.0, donor_loss=2.5,
        changed={"optimizer.learning_rate": [0.001, 0.00125]},
    )  # fmt: skip


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 2), st.integers(3, 5)),
        max_size=12,
        unique_by=lambda each: each[:2],
    )
)
def test_a_line_of_descent_has_no_gap(drawn: list[tuple[int, int, int]]) -> None:
    """Members 0..2 copy members 3..5, who copy nobody, or 3..5 copy 0..2 at other meetings."""
    copies = []
    for generation, low, high in sorted(drawn):
        pair = (low, high) if generation % 2 else (high, low)
        copies.append(copy_of(str(pair[0]), str(pair[1]), generation))
    for member in map(str, range(6)):
        line = ancestry(copies, member)
        assert line[0][1] == 0.0
        assert line[-1][0] == member
        assert line[-1][2] is None
        for before, after in itertools.pairwise(line):
            assert before[2] == after[1]


@pytest.fixture(scope="module")
def contents(run_factory: Callable[..., RunFolder]) -> Contents:
    """Return a run with two objectives, copies and importances; none of it computed here."""
    folder = run_factory(fitted=False)
    results = read_results(folder)
    names = [trial.trial for trial in results.trials]
    best = results.best()
    assert best is not None
    other = next(name for name in names if name != best.trial)
    results = replace(results, copies=(copy_of(best.trial, other, 1), copy_of("t002", "t003", 2)))
    results.write()
    front = Front(
        metrics=("val_loss", "device_hours"), modes=("min", "min"), trials=tuple(names[:2]),
        values=((2.0, 0.5), (3.0, 0.1)), num_compared=9, reference_point=(4.0, 1.0),
        spent_device_hours=(0.1, 0.6), hypervolume=(0.25, 0.75),
    )  # fmt: skip
    summary = SearchSummary(
        front=front,
        importances=Importances(
            shares={"optimizer.learning_rate": 0.8, "model": 0.2}, num_trials=9
        ),
        gain=ExpectedGain(gain=0.01, worth=0.02, cost_share=0.1, num_trials=9),
    )
    folder.write("search.json", summary.to_json())
    read = read_results(folder)
    assert read.copies == results.copies
    study = read.study.replace(objective=[{"metric": "val_loss"}, {"metric": "device_hours"}])
    return Contents(
        folder=folder, results=replace(read, study=study), law=None, recommendation=None,
        obstacle="none was asked for",
    )  # fmt: skip


def test_the_page_shows_front_descent_importances_and_advice(contents: Contents) -> None:
    page = page_html(contents)
    headings = re.findall(r"<h2 [^>]*>([^<]+)</h2>", page)
    assert headings.index("Pareto front") < headings.index("Learning curves")
    assert headings.index("Who copied whom") < headings.index("Budget burn-down")
    assert "0.750 at the end" in page
    assert "by 9 trials" in page
    assert "stopping here pays" in page
    best = contents.results.best()
    assert best is not None
    assert f"the training behind {best.trial}, the best" in page
    assert "learning rate 0.001 to 0.00125" in page


def test_markdown_and_data_say_the_same(contents: Contents) -> None:
    text = page_markdown(contents)
    for heading in ("## Pareto front", "## Who copied whom", "## What the search learned"):
        assert heading in text
    data = report_data(contents)
    assert data["search"]["front"]["hypervolume"] == (0.25, 0.75)
    assert [copy["trial"] for copy in data["copies"]] == [c.trial for c in contents.results.copies]


def test_a_run_of_one_objective_without_copies_shows_none_of_it(page: str) -> None:
    for heading in ("Pareto front", "Who copied whom", "What the search learned"):
        assert heading not in page


def test_metrics_are_written_in_their_units() -> None:
    assert written("num_params", 1.3e9) == "1.3B"
    assert written("step_seconds", 90.0) == "1 min 30 s"
