"""A ladder of model shapes between and beyond those that the study tried.

Depth follows width as in the study: between two tried widths along a line in the logarithms,
beyond them at the aspect ratio of the nearest one. Heads keep the channels of the widest model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Final

from planner.costs import count_params
from planner.trial import ModelConfig, divisors

__all__ = ["ladder", "shape_key"]

_WIDTH_STEP: Final = 1.12
"""Widths rise by about this: parameters by 1.4, less than any law's optimum is known to."""
_FURTHER_DOWN: Final = 4
"""The narrowest rung is this much narrower than the narrowest tried model."""
_DEEP: Final = 3
"""Layers from which one more changes the aspect ratio by a third at most: a rung in between."""
_MAX_RUNGS: Final = 80


def shape_key(model: ModelConfig) -> tuple[int, int, int, int, int]:
    """Return what two models of the same shape share."""
    return (model.num_layers, model.d_model, model.heads, model.kv_heads, model.ff_width)


def ladder(tried: Sequence[ModelConfig], most_params: float) -> list[ModelConfig]:
    """Return the tried shapes and rungs between and beyond them, rising in parameters.

    Args:
        tried: At least one model; its other settings (vocabulary, norm, ...) are kept.
        most_params: Largest number of parameters, all counted.
    """
    shapes = {shape_key(model): model for model in tried}
    taken = {(model.num_layers, model.d_model) for model in tried}
    for model in _rungs(tried, most_params):
        if (model.num_layers, model.d_model) not in taken:
            shapes[shape_key(model)] = model
    sized = [(count_params(model).total, model) for model in shapes.values()]
    return [model for size, model in sorted(sized, key=lambda p: p[0]) if size <= most_params]


def _rungs(tried: Sequence[ModelConfig], most_params: float) -> Iterator[ModelConfig]:
    widest = max(tried, key=lambda model: model.d_model)
    narrowest = min(model.d_model for model in tried)
    width = narrowest / _FURTHER_DOWN
    last = 0
    for _ in range(_MAX_RUNGS):
        rounded = _round_width(max(width, last + 1), widest.head_dim)
        depth = max(1, round(_depth(tried, rounded)))
        model = _shape(widest, rounded, depth)
        if count_params(model).total > most_params:
            return
        yield model
        if depth >= _DEEP:
            yield _shape(widest, rounded, depth + 1)
        last, width = rounded, max(width, rounded) * _WIDTH_STEP


def _round_width(width: float, head_dim: int) -> int:
    """Return the next multiple of a head's channels, and of 64 or 128 where the model is wide."""
    unit = 1 if width < 512 else 64 if width < 4096 else 128
    multiple = math.lcm(head_dim, unit)
    return max(1, math.ceil(width / multiple)) * multiple


def _depth(tried: Sequence[ModelConfig], width: int) -> float:
    """Return the layers at a width, by the tried models."""
    depths: dict[int, list[int]] = {}
    for model in tried:
        depths.setdefault(model.d_model, []).append(model.num_layers)
    known = sorted((w, median(layers)) for w, layers in depths.items())
    below = max((point for point in known if point[0] <= width), default=known[0])
    above = min((point for point in known if point[0] >= width), default=known[-1])
    if below[0] >= above[0]:
        nearest = below if above[0] < width else above
        return float(nearest[1] * width / nearest[0])
    share = math.log(width / below[0]) / math.log(above[0] / below[0])
    return float(below[1] * (above[1] / below[1]) ** share)


def _shape(like: ModelConfig, d_model: int, num_layers: int) -> ModelConfig:
    """Return a model like another of another width and depth."""
    heads = max(1, d_model // like.head_dim)
    group = like.heads // like.kv_heads
    kv_heads = None
    if like.num_kv_heads is not None:
        wanted = 1 if like.kv_heads == 1 else max(1, heads // group)
        kv_heads = max(d for d in divisors(heads) if d <= wanted)
    d_ff = None
    if like.d_ff is not None:
        d_ff = max(16, round(like.d_ff / like.d_model * d_model / 16) * 16)
    return like.replace(
        num_layers=num_layers, d_model=d_model, num_heads=heads, num_kv_heads=kv_heads, d_ff=d_ff
    )
