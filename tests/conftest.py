"""What several tests build on: a small study, and a folder for its runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from planner.study import Study, load_study

SMALL = {
    "name": "small",
    "search_space": {
        "name": "two",
        "parameters": {
            "model": {
                "choice": [
                    {"num_layers": 1, "d_model": 16, "num_heads": 2},
                    {"num_layers": 2, "d_model": 32, "num_heads": 2},
                ]
            },
            "optimizer.learning_rate": {"loguniform": [1e-3, 1e-2]},
        },
    },
    "base": {
        "model": {"sequence_length": 32},
        "batch": {"sequences_per_step": 4},
        "train": {"tokens": 4096, "num_validations": 4, "validation_tokens": 1024},
    },
    "search": {"algorithm": "random", "num_trials": 4, "seed": 0},
    "budget": {"device_hours": 1},
    "cluster": {"device": "cpu", "devices_per_node": 2},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a file's tests to one worker, and all files that start Ray to the same one, first.

    Under `-n 2` the two workers share two cores: Ray's files take about half of the suite's time.
    """
    ray = {item.path for item in items if item.get_closest_marker("ray")}
    for item in items:
        group = "ray" if item.path in ray else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path not in ray)


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a small study with some keys replaced, and gives its path."""

    def write(**changes: object) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(SMALL | changes, sort_keys=False))
        return path

    return write


@pytest.fixture
def small_study(write_study: Callable[..., Path]) -> Study:
    """Return a study of four trials of two tiny models."""
    return load_study(write_study())
