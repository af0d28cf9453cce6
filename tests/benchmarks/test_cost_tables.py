"""What the benchmark of the costs calibrates on when its two files share configurations."""

import sys
from pathlib import Path

from planner.costs.tables import table_row

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_configuration_that_is_scored_calibrates_nothing(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import costs

    monkeypatch.delitem(sys.modules, "costs")
    shape = {"layers": "12", "hidden": "768", "heads": "12", "seq": "1024", "gbs": "64"}
    rows = [
        table_row({**shape, "source": "mine", "gpu": "A100", "gpus": "8", "mbs": mbs, "step_s": s})
        for mbs, s in (("1", "0.5"), ("1", "0.6"), ("4", "0.4"))
    ]
    kept = costs._without_scored(rows, rows[:1])
    assert [row.step_seconds for row in kept] == [0.4]
    assert "2 rows of configurations that are scored" in capsys.readouterr().out
