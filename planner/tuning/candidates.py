"""Candidates: the points among which a model-based searcher chooses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.search_space import Point, SearchSpace
from planner.tuning.encoding import Encoder, finite_points, key_of, position_of

__all__ = ["Candidates", "FinitePool", "OpenPool", "make_pool"]

Array = NDArray[np.float64]

_MOST_LISTED: Final = 4096
"""Points of a space that is listed whole."""
_NUM_ANYWHERE: Final = 144
"""Candidates drawn anywhere in a space that is not."""
_NUM_NEAR: Final = 8
"""Candidates near each of the best points."""
_WIDTHS: Final = (0.2, 0.07, 0.02)
"""Standard deviations of the steps from a point to those near it, in widths of the space."""
_EDGE: Final = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Some points and their encodings."""

    points: Sequence[Point]
    vectors: Array


class FinitePool:
    """All points of a small space; each is proposed once."""

    is_listed = True

    def __init__(self, points: list[Point], encoder: Encoder) -> None:
        self._points, self._vectors = points, encoder.encode(points)
        self._left = np.arange(len(points))
        self._index = {key_of(point): i for i, point in enumerate(points)}

    def draw(self, rng: np.random.Generator, near: Iterable[Point]) -> Candidates | None:
        """Return what is left, or None."""
        if not len(self._left):
            return None
        points = _Selection(self._points, self._left)
        return Candidates(points=points, vectors=self._vectors[self._left])

    def remove(self, point: Point) -> None:
        """Never offer a point again."""
        index = self._index.get(key_of(point))
        self._left = self._left[self._left != index]


class _Selection(Sequence[Point]):
    """Some of a list's points, without a copy."""

    def __init__(self, points: list[Point], rows: NDArray[np.int64]) -> None:
        self._points, self._rows = points, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._points[self._rows[index]]


class OpenPool:
    """A space too large to list: points anywhere, and near given ones."""

    is_listed = False

    def __init__(self, space: SearchSpace, base: Mapping[str, Any], encoder: Encoder) -> None:
        self._space, self._base, self._encoder = space, base, encoder
        self._names = list(space.parameters)
        self._seen: set[str] = set()
        self._may_repeat = math.isfinite(space.num_points)

    def draw(self, rng: np.random.Generator, near: Iterable[Point]) -> Candidates | None:
        """Return random points, and points a random step away from those in `near`."""
        blocks = [rng.random((_NUM_ANYWHERE, len(self._names)))]
        blocks += [self._around(rng, point) for point in near]
        positions = np.concatenate(blocks)
        points = [
            self._space.point(dict(zip(self._names, row, strict=True)), self._base)
            for row in positions.tolist()
        ]
        fresh = [p for p in points if key_of(p) not in self._seen] if self._may_repeat else points
        fresh = fresh or points
        return Candidates(points=fresh, vectors=self._encoder.encode(fresh))

    def _around(self, rng: np.random.Generator, point: Point) -> Array:
        centre = np.array(
            [
                position_of(d, point[name]) if name in point else 0.5
                for name, d in self._space.parameters.items()
            ]
        )
        widths = np.resize(np.array(_WIDTHS), (_NUM_NEAR, 1))
        moved = rng.random((_NUM_NEAR, len(centre))) < max(0.5, 2.0 / len(centre))
        steps = rng.standard_normal((_NUM_NEAR, len(centre))) * widths * moved
        return np.clip(centre + steps, 0.0, 1.0 - _EDGE)

    def remove(self, point: Point) -> None:
        """Do not offer a point again while there are others."""
        self._seen.add(key_of(point))


def make_pool(
    space: SearchSpace, base: Mapping[str, Any], encoder: Encoder
) -> FinitePool | OpenPool:
    """Return the pool of a space."""
    points = finite_points(space, base, _MOST_LISTED)
    return OpenPool(space, base, encoder) if points is None else FinitePool(points, encoder)
