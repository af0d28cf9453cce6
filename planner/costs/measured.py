"""Finished trials as measurements for calibration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from planner.config import parse_config
from planner.costs.calibration import Calibration, MeasuredTrial, calibrate
from planner.costs.cluster import Cluster
from planner.costs.estimates import device_peaks
from planner.costs.workload import workload_of
from planner.errors import ConfigError
from planner.trial import TrialConfig, TrialResult, TrialState

__all__ = ["Measured", "calibrate_on_runs", "measured_trial"]

_MIN_STEPS: Final = 5
"""Shorter trials measure their start, not their steps."""
_MIN_TRIALS: Final = 3
"""Fewer do not calibrate by themselves."""

_MEASURES = (TrialState.COMPLETED, TrialState.STOPPED, TrialState.DIVERGED)


def measured_trial(result: TrialResult, cluster: Cluster) -> MeasuredTrial | None:
    """Return what a finished trial measured, or None where it measured nothing or no longer loads.

    Step seconds are the tokens of a step over the tokens per second, of trials of five steps and more;
    memory is that of the fullest worker.
    """
    if result.state not in _MEASURES:
        return None
    try:
        config = parse_config(result.config, TrialConfig, result.trial)
        peaks = device_peaks(config, cluster)
        workload = workload_of(config, peaks, on_cpu=cluster.device.is_cpu)
    except (ConfigError, KeyError):
        return None
    rate = result.tokens_per_second if (result.num_steps or 0) >= _MIN_STEPS else None
    if not rate and not result.peak_memory_bytes:
        return None
    return MeasuredTrial(
        workload=workload,
        cluster=cluster,
        step_seconds=config.tokens_per_step / rate if rate else None,
        memory_bytes=result.peak_memory_bytes or None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What earlier runs on a cluster measured."""

    calibration: Calibration
    runs: tuple[tuple[str, int], ...]
    """Name of each run and the number of its trials that measured something."""


def calibrate_on_runs(
    runs: Iterable[tuple[str, Iterable[TrialResult]]], cluster: Cluster
) -> Measured | None:
    """Return the calibration on the trials of several runs on a cluster.

    None where fewer than three trials measured anything.
    """
    trials: list[MeasuredTrial] = []
    used: list[tuple[str, int]] = []
    for name, results in runs:
        found = [measured_trial(result, cluster) for result in results]
        own = [trial for trial in found if trial is not None]
        trials += own
        if own:
            used.append((name, len(own)))
    if len(trials) < _MIN_TRIALS:
        return None
    return Measured(calibration=calibrate(trials), runs=tuple(used))
