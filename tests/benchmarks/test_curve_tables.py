"""Tables of others: what the benchmark of the curves does with rows and splits it cannot use."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from planner.errors import ConfigError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def curves(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import curves

    yield curves
    for name in ("curves", "split_tables", "regret"):
        sys.modules.pop(name, None)


@pytest.fixture
def points(tmp_path) -> Path:
    params, tokens = np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 4))
    loss = 1.7 + 400 / params**0.34 + 410 / tokens**0.28
    rows = {"set": 7, "num_params": params.ravel(), "num_tokens": tokens.ravel()}
    path = tmp_path / "points.csv"
    pd.DataFrame({**rows, "loss": loss.ravel()}).to_csv(path, index=False)
    return path


def test_a_split_that_selects_nothing_is_refused(curves, points, tmp_path, capsys):
    splits = tmp_path / "splits.csv"
    columns = "set,split,train_max_flops,test_min_flops"
    splits.write_text(f"{columns}\n7,2,1e19,1e99\n7,3,1,1e19\nother,4,1e19,1e19\n")
    assert not curves.run_splits(curves.read_loss_table(points), curves.read_splits(splits))
    shown = capsys.readouterr().out
    assert "no training to predict among the 16 of the set" in shown
    assert "got 0" in shown
    assert "the points have no set 'other'" in shown
    assert "0 splits scored, 3 refused" in shown


def test_rows_without_a_usable_number_are_counted_and_flops_default_to_6_n_d(
    curves, points, capsys
):
    table = pd.read_csv(points)
    table.loc[3, "loss"] = np.inf
    table.to_csv(points, index=False)
    rows = curves.read_loss_table(points)
    assert len(rows) == 15
    assert "1 of 16 rows left out" in capsys.readouterr().out
    np.testing.assert_allclose(rows.train_flops, 6 * rows.num_params * rows.num_tokens)
    with pytest.raises(ConfigError, match="lacks the columns split"):
        curves.read_splits(points)
