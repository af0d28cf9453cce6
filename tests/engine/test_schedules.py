"""Schedules at their corners, and their shape in between."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.engine.schedules import learning_rate_factor, scaled_learning_rate, sequences_at
from planner.trial import OptimizerConfig, ScheduleConfig

NAMES = ("constant", "cosine", "linear", "wsd", "inverse-sqrt", "step", "cyclical")


@pytest.mark.parametrize(
    ("schedule", "corners"),
    [
        ({"name": "constant", "warmup_fraction": 0.2}, {0.1: 0.5, 0.2: 1, 1.0: 1}),
        (
            {"name": "cosine", "warmup_fraction": 0.2, "final_fraction": 0.1},
            {0.1: 0.5, 0.2: 1, 0.6: 0.55, 1.0: 0.1},
        ),
        (
            {"name": "linear", "warmup_fraction": 0.2, "final_fraction": 0.0},
            {0.2: 1, 0.6: 0.5, 1.0: 0},
        ),
        (
            {"name": "wsd", "warmup_fraction": 0.1, "decay_fraction": 0.2, "final_fraction": 0.0},
            {0.05: 0.5, 0.1: 1, 0.8: 1, 0.9: 0.5, 1.0: 0},
        ),
        (
            {"name": "inverse-sqrt", "warmup_fraction": 0.04},
            {0.02: 0.5, 0.04: 1, 0.16: 0.5, 1: 0.2},
        ),
        (
            {"name": "step", "warmup_fraction": 0.0, "num_drops": 2, "drop_factor": 0.1},
            {0.2: 1, 0.34: 0.1, 0.67: 0.01, 1.0: 0.01},
        ),
        (
            {"name": "cyclical", "warmup_fraction": 0.0, "num_cycles": 2, "final_fraction": 0.2},
            {0.0: 1.0, 0.25: 0.2, 0.5: 1.0, 0.75: 0.2, 1.0: 1.0},
        ),
    ],
    ids=NAMES,
)
def test_a_schedule_matches_its_formula_at_its_corners(schedule, corners):
    config = ScheduleConfig(**schedule)
    for progress, factor in corners.items():
        assert learning_rate_factor(config, progress) == pytest.approx(factor, abs=1e-9), progress


@given(st.sampled_from(NAMES), st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 1))
def test_every_schedule_stays_between_zero_and_the_peak(name, progress, warmup, final):
    config = ScheduleConfig(name=name, warmup_fraction=warmup, final_fraction=final)
    factor = learning_rate_factor(config, progress)
    assert 0 <= factor <= 1
    assert math.isfinite(factor)


def test_the_learning_rate_follows_the_batch_as_asked():
    def rate(scaling):
        return scaled_learning_rate(
            OptimizerConfig(learning_rate=1e-3, batch_scaling=scaling, base_sequences_per_step=8),
            32,
        )

    assert [rate(s) for s in ("none", "sqrt", "linear")] == pytest.approx([1e-3, 2e-3, 4e-3])


def test_a_ramp_grows_in_whole_micro_batches_to_the_full_batch(small):
    config = small(batch={"ramp_start_sequences": 2, "ramp_fraction": 0.5})
    sizes = [sequences_at(config, k / 20) for k in range(21)]
    assert sizes[0] == 2
    assert sizes == sorted(sizes)
    assert set(sizes[10:]) == {8}
