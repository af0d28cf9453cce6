"""Population-based bandits: what copies change goes where gains were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.search_space import SearchSpace
from planner.study import SchedulerConfig
from planner.tuning.pb2 import BanditPopulation, forgetting_kernel

SPACE = SearchSpace.model_validate(
    {
        "name": "s",
        "parameters": {
            "rate": {"loguniform": (1e-4, 1e-1)},
            "batch": {"choice": (1, 2, 4)},
            "kind": {"choice": ("a", "b")},
        },
    }
)
RATES = (1e-4, 1e-3, 1e-2, 1e-1)


def population(steps: int, best: float = 1e-2, kind: str = "a", **changes: Any) -> Any:
    """Return a population whose losses have fallen the more the nearer a rate was to the best."""
    config = SchedulerConfig(
        name="pb2", interval_fraction=0.1, perturb=changes.get("perturb", ("rate",))
    )
    found = BanditPopulation(config, seed=changes.get("seed", 0))
    losses = dict.fromkeys(RATES, 5.0)
    for step in range(1, steps + 1):
        for rate in RATES:
            losses[rate] -= 0.5 / (1 + abs(np.log10(rate / best)))
            point = {"rate": rate, "batch": 2, "kind": kind}
            found.report(str(rate), point, 10.0, float(step), losses[rate])
    return found


@pytest.mark.parametrize("best", [1e-3, 1e-2])
def test_copies_go_near_the_settings_that_gained_most(best: float) -> None:
    near = []
    for seed in range(20):
        members = population(4, best=best, seed=seed)
        point = {"rate": 1e-4, "batch": 2, "kind": "a"}
        new = members.changed(SPACE, {}, point, "0.0001", 0)["rate"]
        near.append(abs(np.log10(new / best)) < 0.75)
    assert np.mean(near) > 0.7


def test_copies_of_one_meeting_take_different_settings() -> None:
    members = population(3)
    point = {"rate": 1e-2, "batch": 2, "kind": "a"}
    members._leaving = {"0.0001", "0.001"}
    first = members.changed(SPACE, {}, point, "0.0001", 0)
    members.copied("0.0001", "0.01", first)
    alike = [members.changed(SPACE, {}, point, "0.001", 0)["rate"], first["rate"]]
    assert abs(np.log10(alike[0] / alike[1])) > 0.01


def test_gains_of_another_kind_teach_nothing() -> None:
    members = population(4, kind="b")
    point = {"rate": 1e-2, "batch": 2, "kind": "a"}
    assert members.changed(SPACE, {}, point, "0.01", 0)["rate"] in (8e-3, 1.25e-2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), draw=st.integers(0, 9))
def test_a_change_stays_in_the_space_and_is_repeatable(seed: int, draw: int) -> None:
    point = {"rate": 1e-2, "batch": 2, "kind": "a"}
    perturb = ("rate", "batch", "kind")
    one = population(2, seed=seed, perturb=perturb).changed(SPACE, {}, point, "0.01", draw)
    two = population(2, seed=seed, perturb=perturb).changed(SPACE, {}, point, "0.01", draw)
    assert one == two
    assert all(SPACE.parameters[name].contains(value) for name, value in one.items())


def test_what_was_seen_long_ago_counts_less() -> None:
    x = np.zeros((1, 1))
    now = np.array([5.0])
    old, new = (forgetting_kernel(x, np.array([t]), x, now, 0.3, 0.2)[0, 0] for t in (1.0, 4.0))
    assert old < new < 1.0
