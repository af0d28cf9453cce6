"""Tables of others: what the benchmark of the search reads and refuses."""

import sys
from pathlib import Path

import numpy as np
import pytest

from planner.errors import ConfigError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def search(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import search

    yield search
    for name in ("search", "search_cases"):
        sys.modules.pop(name, None)


def test_categories_are_numbered_and_text_of_numbers_is_read(search, tmp_path):
    path = tmp_path / "t.npz"
    hp = np.array([[["0.001", "sgd"], ["0.1", "adam"], ["0.01", "sgd"]]])
    np.savez(path, hp=hp, hp_names=np.array(["rate", "optimizer"]), valid=np.ones((1, 3, 4)))
    (table,) = search.load(path, 60.0)
    assert table.values.tolist() == [[0.001, 1.0], [0.1, 0.0], [0.01, 1.0]]
    assert table.num_points == 4


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"hp_names": np.array(["a"]), "hp": np.ones((1, 3, 1))}, "must hold hp, hp_names and"),
        (
            {"hp_names": np.array(["a"]), "hp": np.ones((3, 1)), "valid": np.ones((3, 4))},
            r"hp\[tasks, rows, parameters\]",
        ),
        (
            {"hp_names": np.array(["a"]), "hp": np.array([[[1], ["x"]]], dtype=object)},
            "Object arrays cannot be loaded",
        ),
        (
            {
                "hp_names": np.array(["a"]),
                "hp": np.ones((1, 3, 1)),
                "valid": np.full((1, 3, 4), np.nan),
            },
            "a finite loss",
        ),
    ],
    ids=["no losses", "no tasks", "pickled", "all diverged"],
)
def test_a_file_that_is_no_table_says_what_it_lacks(search, tmp_path, arrays, words):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(ConfigError, match=words):
        search.load(tmp_path / "t.npz", 60.0)
