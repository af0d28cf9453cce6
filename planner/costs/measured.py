"""Finished trials as measurements for calibration."""

from __future__ import annotations

from collections.abc import Iterable

from planner.config import parse_config
from planner.costs.calibration import Calibration, MeasuredTrial, calibrate
from planner.costs.cluster import Cluster
from planner.costs.estimates import device_peaks
from planner.costs.workload import workload_of
from planner.errors import ConfigError
from planner.trial import TrialConfig, TrialResult, TrialState

__all__ = ["calibrate_on_results", "measured_trial"]

_MEASURES = (TrialState.COMPLETED, TrialState.STOPPED, TrialState.DIVERGED)


def measured_trial(result: TrialResult, cluster: Cluster) -> MeasuredTrial | None:
    """Return what a finished trial measured, or None where it measured nothing or no longer loads.

    Step seconds are the tokens of a step over the tokens per second; memory is that of the fullest
    worker.
    """
    if result.state not in _MEASURES:
        return None
    try:
        config = parse_config(result.config, TrialConfig, result.trial)
        peaks = device_peaks(config, cluster)
        workload = workload_of(config, peaks, on_cpu=cluster.device.is_cpu)
    except (ConfigError, KeyError):
        return None
    rate = result.tokens_per_second
    if not rate and not result.peak_memory_bytes:
        return None
    return MeasuredTrial(
        workload=workload,
        cluster=cluster,
        step_seconds=config.tokens_per_step / rate if rate else None,
        memory_bytes=result.peak_memory_bytes or None,
    )


def calibrate_on_results(results: Iterable[TrialResult], cluster: Cluster) -> Calibration | None:
    """Return the calibration that finished trials on a cluster support, or None if none measured."""
    found = [measured_trial(result, cluster) for result in results]
    trials = [trial for trial in found if trial is not None]
    return calibrate(trials) if trials else None
