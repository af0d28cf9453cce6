"""Tables of measured learning curves, as a source of simulated trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from planner.budget import Budget
from planner.costs import ClusterConfig, CostEstimate, estimate, resolve_cluster
from planner.errors import ConfigError
from planner.planning import Candidate
from planner.search_space import Distribution, Point, SearchSpace
from planner.study import Objective, SearchConfig, Study
from planner.trial import TrialConfig
from planner.tuning.sources import Timeline

__all__ = ["CurveTable"]


class CurveTable:
    """Measured curves of a finite set of configurations; one FLOP stands for one curve point.

    Args:
        names: Hyperparameters [P].
        values: Their values [R, P].
        losses: Loss at each point of each curve [R, T]; what is not finite is divergence.
        seconds_per_point: Simulated seconds between two points of a curve.

    Raises:
        ConfigError: The shapes do not agree, a value is not finite, or no loss is.
    """

    def __init__(
        self,
        names: Sequence[str],
        values: NDArray[np.floating[Any]],
        losses: NDArray[np.floating[Any]],
        seconds_per_point: float = 60.0,
    ) -> None:
        if values.shape != (len(losses), len(names)) or losses.ndim != 2 or not losses.size:
            raise ConfigError(
                "a table needs values[rows, parameters] and losses[rows, points]: got "
                f"{len(names)} names, values {values.shape}, losses {losses.shape}."
            )
        if not (np.isfinite(values).all() and np.isfinite(losses).any()):
            raise ConfigError("a table needs a finite value of every parameter, and a finite loss.")
        self.names = [_column_name(n, values[:, j]) for j, n in enumerate(names)]
        columns = [_column(values[:, j]) for j in range(len(names))]
        self.values = np.stack(columns, axis=1).astype(float)
        self.losses = losses.astype(float)
        self.seconds_per_point = seconds_per_point
        self._row_of = {tuple(row): i for i, row in enumerate(self.values.tolist())}
        self._is_log = [_spans(column) for column in self.values.T]
        scaled = self._scaled(self.values)
        self._low, span = scaled.min(0), np.ptp(scaled, 0)
        self._span = np.where(span > 0, span, 1.0)
        self._unit = (scaled - self._low) / self._span
        self._reports = [[{"val_loss": loss} for loss in row] for row in self.losses.tolist()]
        self._flops = [float(i) for i in range(1, self.num_points + 1)]
        self._seconds = [i * seconds_per_point for i in range(1, self.num_points + 1)]
        self._template = _template(self.num_points, seconds_per_point)

    @property
    def num_points(self) -> int:
        """Points of a whole curve."""
        return self.losses.shape[1]

    def space(self, *, rows: bool) -> SearchSpace:
        """Return the table as a search space.

        Args:
            rows: Whether the space is the list of rows (one choice of mappings). Otherwise it is
                the box around them, and a point stands for the nearest row.
        """
        if rows:
            rows_of_table = self.values.tolist()
            table: list[JsonValue] = [
                dict(zip(self.names, row, strict=True)) for row in rows_of_table
            ]
            # Built without checks: the one for repeated values would be quadratic.
            choice = Distribution.model_construct(choice=tuple(table))
            return SearchSpace.model_construct(
                name="rows", description="", parameters={"row": choice}, constraints=()
            )
        parameters = {}
        for name, column, is_log in zip(self.names, self.values.T, self._is_log, strict=True):
            bounds = (float(column.min()), float(column.max()))
            if bounds[0] < bounds[1]:
                parameters[name] = (
                    Distribution(loguniform=bounds) if is_log else Distribution(uniform=bounds)
                )
        return SearchSpace(name="box", parameters=parameters)

    def study(self, search: SearchConfig, *, seconds: float, num_workers: int, rows: bool) -> Study:
        """Return a study of the table for a simulated time with so many workers."""
        return Study.model_construct(
            name="table", question="", search_space=self.space(rows=rows), base={},
            objective=(Objective(),), search=search, budget=Budget(seconds=seconds),
            cluster=ClusterConfig(device="cpu", devices_per_node=num_workers), target=None,
            overrides=(),
        )  # fmt: skip

    def row_of(self, point: Point) -> int:
        """Return the row that a point is or, in a box, that is nearest to it."""
        row = point.get("row")
        if isinstance(row, dict):
            return self._row_of[tuple(row.values())]
        first = dict(zip(self.names, self.values[0].tolist(), strict=True))
        values = np.array([list((first | point).values())], dtype=float)
        unit = (self._scaled(values) - self._low) / self._span
        return int(((self._unit - unit) ** 2).sum(1).argmin())

    def price(self, trial: str, point: Point) -> Candidate:
        """Return the cost of a whole curve, which is the same for all."""
        config, cost = self._template
        return Candidate(trial=trial, point=point, config=config, cost=cost)

    def timeline(
        self, trial: str, point: Point, config: TrialConfig, report_at_flops: Sequence[float]
    ) -> Timeline:
        """Return the curve of the point's row."""
        return Timeline(
            seconds=self._seconds, flops=self._flops, reports=self._reports[self.row_of(point)]
        )

    def _scaled(self, values: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        scaled = values.astype(float).copy()
        for j, is_log in enumerate(self._is_log):
            if is_log:
                scaled[:, j] = np.log(scaled[:, j])
        return scaled


def _spans(column: NDArray[np.floating[Any]]) -> bool:
    """Return whether a positive column spans so much that its logarithm is the natural scale."""
    return bool(column.min() > 0 and column.max() > 30 * column.min())


def _is_near_one(column: NDArray[np.floating[Any]]) -> bool:
    """Return whether a column, such as a beta, is best told by its distance from 1."""
    inside = bool(column.min() >= 0 and column.max() < 1)
    return inside and float(1 - np.median(column)) < 0.1 and _spans(1 - column)


def _column_name(name: str, column: NDArray[np.floating[Any]]) -> str:
    return f"one_minus_{name}" if _is_near_one(column) else name


def _column(column: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return 1 - column if _is_near_one(column) else column


def _template(num_points: int, seconds_per_point: float) -> tuple[TrialConfig, CostEstimate]:
    """Return a configuration and a cost that stand for every row of a table."""
    data = {"model": {"num_layers": 1, "d_model": 32, "num_heads": 1}, "train": {"tokens": 1000}}
    config = TrialConfig.model_validate(data)
    seconds = num_points * seconds_per_point
    cost = estimate(config, resolve_cluster(ClusterConfig(device="cpu", devices_per_node=1)))
    return config, replace(
        cost, train_flops=float(num_points), startup_seconds=0.0, train_seconds=seconds,
        device_hours=seconds / 3600.0, num_devices=1, usd=None, kwh=None, fits=True, reason=None,
    )  # fmt: skip
