"""What several tests build on: a small study, and a folder for its runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

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


def starts_ray(file: Path) -> bool:
    """Return whether a file has tests that start Ray."""
    return "mark.ray" in file.read_text()


class ByFile(LoadScopeScheduling):
    """Gives a file's tests to one worker, and all files that start Ray to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if starts_ray(self.config.rootpath / file) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """Share the tests between two workers on two cores; Ray's take about half of the time."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what starts Ray."""
    items.sort(key=lambda item: not starts_ray(item.path))


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
