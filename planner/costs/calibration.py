"""Constants of a cluster, fitted on trials that were measured there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.costs.cluster import Cluster
from planner.costs.memory import GPU_MEMORY, MemoryConstants
from planner.costs.speed import Efficiency, step_time
from planner.costs.workload import Array, Workload

__all__ = ["Calibration", "Prediction"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """Seconds per step with the ends of the 90 % interval."""

    seconds: Array
    lower: Array
    upper: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Constants with the spread that they leave."""

    efficiency: Efficiency
    memory: MemoryConstants = GPU_MEMORY
    log_sigma: float = 0.15
    """Standard deviation of the log of measured over predicted step seconds."""

    def predict(self, w: Workload, cluster: Cluster) -> Prediction:
        """Return step seconds with a 90 % interval."""
        seconds = np.atleast_1d(step_time(w, cluster, self.efficiency).total)
        half = float(np.exp(1.645 * self.log_sigma))
        return Prediction(seconds=seconds, lower=seconds / half, upper=seconds * half)
