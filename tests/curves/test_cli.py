"""The verbs fit and predict."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from planner.cli.fit import command as fit_command
from planner.cli.predict import command as predict_command
from planner.curves import ScalingLaw
from planner.errors import ConfigError


@pytest.fixture
def table(sweep, tmp_path) -> Path:
    p = sweep()
    path = tmp_path / "losses.csv"
    frame = pd.DataFrame({"num_params": p.num_params, "num_tokens": p.num_tokens, "final": p.loss})
    frame.to_csv(path, index=False)
    return path


def _run(command, *arguments: object):
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)


def test_fit_writes_a_law_that_predict_reads(table, tmp_path):
    fitted = _run(fit_command, table, "--map", "loss=final", "--draws", 20, "--no-plots")
    assert fitted.exit_code == 0, fitted.output
    assert "alpha" in fitted.output
    law = ScalingLaw.load(tmp_path / "laws.json")
    assert law.columns["loss"] == "final"
    out = tmp_path / "predicted.csv"
    predicted = _run(predict_command, tmp_path / "laws.json", "--at", table, "--out", out)
    assert predicted.exit_code == 0, predicted.output
    rows = pd.read_csv(out)
    assert len(rows) == 36
    assert not (tmp_path / "plots").exists()
    assert (rows.loss_lower < rows.loss).all()
    assert (rows.loss < rows.loss_upper).all()


def test_json_is_one_document_with_the_suggestion(table, tmp_path):
    done = _run(
        fit_command, table, "--map", "loss=final", "--draws", 20, "--json", "--suggest", 3,
        "--pilot-budget", "1e21flops", "--target", "1e24flops", "--out", tmp_path / "l.json",
        "--plots", tmp_path / "drawn",
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert document["law"]["num_rows"] == 36
    names = [Path(name).name for name in document["plots"]]
    assert names == ["loss.png", "residuals.png", "isoflop.png", "best-size.png"]
    for name in document["plots"]:
        assert Path(name).parent == tmp_path / "drawn"
        assert Path(name).read_bytes().startswith(b"\x89PNG")
    assert 1 <= len(document["suggestion"]["trials"]) <= 3


def test_gaps_and_zeros_in_columns_that_no_form_reads_are_drawn(table, tmp_path):
    rows = pd.read_csv(table).assign(warmup_fraction=0.0, learning_rate=1e-3)
    rows.loc[3, "learning_rate"] = None
    rows.to_csv(table, index=False)
    done = _run(fit_command, table, "--map", "loss=final", "--draws", 20, "--plots", tmp_path / "p")
    assert done.exit_code == 0
    assert (tmp_path / "p" / "residuals.png").is_file()


def test_one_point_is_predicted_without_a_table(table, tmp_path):
    _run(fit_command, table, "--map", "loss=final", "--draws", 20, "--no-plots")
    done = _run(
        predict_command, tmp_path / "laws.json", "--params", "1B", "--tokens", "20B", "--json"
    )
    (row,) = json.loads(done.stdout)
    assert row["loss"] == pytest.approx(2.48, abs=0.05)
    assert row["loss_lower"] < row["loss"] < row["loss_upper"]


def test_a_budget_in_other_units_is_refused(table):
    with pytest.raises(ConfigError, match="amount of FLOPs"):
        _run(fit_command, table, "--map", "loss=final", "--draws", 20, "--suggest", 2,
             "--pilot-budget", "5 usd")  # fmt: skip


def test_a_map_without_an_equals_sign_is_refused(table):
    with pytest.raises(ConfigError, match="QUANTITY=COLUMN"):
        _run(fit_command, table, "--map", "loss")


def test_a_map_to_a_column_that_is_not_there_is_refused_when_predicting(table, tmp_path):
    _run(fit_command, table, "--map", "loss=final", "--draws", 20, "--no-plots")
    for wrong, why in (("train_flops=flops", "no column 'flops'"), ("parms=x", "no quantity")):
        with pytest.raises(ConfigError, match=why):
            _run(predict_command, tmp_path / "laws.json", "--at", table, "--map", wrong)


def test_predicting_at_nothing_says_how(table, tmp_path):
    _run(fit_command, table, "--map", "loss=final", "--draws", 20, "--no-plots")
    with pytest.raises(ConfigError, match="--at FILE"):
        _run(predict_command, tmp_path / "laws.json")


def test_a_place_that_cannot_be_written_is_named_with_the_option(table, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    fit_it = (fit_command, table, "--map", "loss=final", "--draws", 20)
    _run(*fit_it, "--no-plots")
    for arguments, option in (
        ((*fit_it, "--no-plots", "--out", file / "laws.json"), "--out"),
        ((*fit_it, "--plots", file / "plots"), "--plots"),
        (
            (predict_command, tmp_path / "laws.json", "--at", table, "--out", file / "t.csv"),
            "--out",
        ),
    ):
        with pytest.raises(ConfigError, match="cannot write") as caught:
            _run(*arguments)
        assert option in str(caught.value.hint)


def test_a_budget_of_pilots_without_pilots_is_refused(table):
    for option in ("--pilot-budget", "--target"):
        with pytest.raises(ConfigError, match="--suggest N"):
            _run(fit_command, table, "--map", "loss=final", option, "1e20flops")


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("70B", "must hold numbers: 1 of 36 rows do not, the first is '70B' in row 2"),
        ("", "1 of 36 are not, the first is nan"),
        ("1e300", r"below 1e\+60: 1 of 36 are not, the first is 1e\+300"),
    ],
    ids=["text", "absent", "huge"],
)
def test_a_size_that_cannot_be_predicted_at_is_shown(table, tmp_path, cell, why):
    _run(fit_command, table, "--map", "loss=final", "--draws", 20, "--no-plots")
    rows = pd.read_csv(table).astype({"num_params": object})
    rows.loc[1, "num_params"] = cell
    rows.to_csv(tmp_path / "at.csv", index=False)
    with pytest.raises(ConfigError, match=why):
        _run(predict_command, tmp_path / "laws.json", "--at", tmp_path / "at.csv")
