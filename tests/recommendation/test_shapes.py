"""The ladder of shapes around the study's own."""

from __future__ import annotations

from itertools import pairwise

import pytest

from planner.costs import count_params
from planner.recommendation.shapes import ladder
from planner.trial import ModelConfig

TRIED = [
    ModelConfig(num_layers=4, d_model=128, num_heads=4),
    ModelConfig(num_layers=8, d_model=256, num_heads=8),
]


def test_rungs_rise_and_hold_the_tried_shapes() -> None:
    shapes = ladder(TRIED, 1e9)
    sizes = [count_params(model).total for model in shapes]
    assert sizes == sorted(sizes)
    assert all(model in shapes for model in TRIED)
    assert sizes[-1] > 3e8
    assert sizes[0] < count_params(TRIED[0]).total


def test_no_rung_is_larger_than_asked() -> None:
    assert all(count_params(model).total <= 5e6 for model in ladder(TRIED, 5e6))
    assert ladder(TRIED, 10.0) == []


def test_aspect_ratio_and_head_size_are_kept() -> None:
    for model in ladder(TRIED, 1e9):
        assert model.head_dim == 32
        assert model.d_model / model.num_layers == pytest.approx(32, rel=0.35)


def test_wide_models_are_multiples_of_64() -> None:
    wide = [model for model in ladder(TRIED, 1e10) if model.d_model >= 512]
    assert len(wide) > 5
    assert all(model.d_model % 64 == 0 for model in wide)


def test_steps_are_fine_enough_to_meet_any_size_within_half() -> None:
    sizes = [count_params(model).total for model in ladder(TRIED, 1e9)]
    above = [size for size in sizes if size > 1e6]
    assert max(b / a for a, b in pairwise(above)) < 2.0


def test_groups_of_key_heads_and_the_width_of_the_mlp_are_kept() -> None:
    one = ModelConfig(num_layers=4, d_model=256, num_heads=8, num_kv_heads=2, d_ff=768, mlp="gated")
    for model in ladder([one], 1e8):
        assert model.heads % model.kv_heads == 0
        assert model.ff_width / model.d_model == pytest.approx(3.0, rel=0.1)
        assert model.mlp == "gated"


def test_depth_between_two_tried_widths_lies_between_theirs() -> None:
    between = [m for m in ladder(TRIED, 1e8) if 128 < m.d_model < 256]
    assert between
    assert all(4 <= model.num_layers <= 8 for model in between)
