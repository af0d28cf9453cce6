"""Studies that take seconds, and a ledger in memory."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from planner.config import parse_config
from planner.costs import resolve_cluster
from planner.study import Study
from planner.tuning.core import Sweep
from planner.tuning.ledger import Line

MakeStudy = Callable[..., Study]
MakeSweep = Callable[..., tuple[Sweep, list[Line]]]

RATES = [1e-3, 2e-3, 4e-3, 8e-3]


@pytest.fixture
def make_study() -> MakeStudy:
    """Return a maker of studies of one tiny model; keywords replace top-level keys."""

    def make(**changes: Any) -> Study:
        data: dict[str, Any] = {
            "name": "tiny",
            "search_space": {
                "name": "rates",
                "parameters": {"optimizer.learning_rate": {"choice": RATES}},
            },
            "base": {
                "model": {"num_layers": 1, "d_model": 16, "num_heads": 1, "sequence_length": 32},
                "batch": {"sequences_per_step": 4},
                "train": {"tokens": 2048, "num_validations": 4, "validation_tokens": 256},
            },
            "search": {"algorithm": "grid", "max_concurrent": 1},
            "budget": {"device_hours": 1.0},
            "cluster": {"device": "cpu", "devices_per_node": 2},
        }
        return parse_config(data | changes, Study)

    return make


@pytest.fixture
def make_sweep() -> MakeSweep:
    """Return a maker of a core and the list that its ledger's lines go to."""

    def make(study: Study, lines: list[Line] | None = None, **options: Any) -> Any:
        written: list[Line] = []
        sweep = Sweep(
            study,
            resolve_cluster(study.cluster),
            write=lambda line, durable: written.append(dict(line)),
            **options,
        )
        sweep.replay(lines or [])
        sweep.begin(sweep.now)
        return sweep, written

    return make


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module of the trainers that train nothing."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("trainers")
