"""Measured over estimated speed of a run's own trials, so that times are not only theory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planner.config import parse_config
from planner.costs import Cluster, ClusterConfig, estimate, resolve_cluster
from planner.errors import ConfigError
from planner.recommendation.answer import Calibration
from planner.trial import TrialConfig, TrialResult, TrialState

__all__ = ["calibrate", "speed_ratio"]

_MIN_STEPS = 5
"""Shorter trials measure their start."""


def calibrate(
    trials: Sequence[TrialResult], trained_on: ClusterConfig, cluster: Cluster
) -> Calibration:
    """Return the ratio of measured to estimated tokens per second, by size.

    Args:
        trials: Of a run.
        trained_on: Cluster of the run.
        cluster: Cluster that the recommendation is for; another device is not calibrated.
    """
    if cluster.device.name != trained_on.device:
        return Calibration(
            is_measured=False,
            note=f"the trials ran on {trained_on.device}: the speed of {cluster.device.name} is "
            "estimated, not measured",
        )
    home = resolve_cluster(trained_on)
    measured = [
        (trial.num_params, ratio, trial.num_workers)
        for trial in trials
        if trial.num_params is not None and (ratio := _ratio(trial, home)) is not None
    ]
    if not measured:
        return Calibration(is_measured=False, note="no trial reported its speed")
    single = [m for m in measured if m[2] == 1] or measured
    sizes = sorted({size for size, _, _ in single})
    ratios = [float(np.median([r for s, r, _ in single if s == size])) for size in sizes]
    base = Calibration(
        is_measured=True,
        num_trials=len(measured),
        num_params=tuple(float(size) for size in sizes),
        ratios=tuple(ratios),
        note="measured while the sweep ran, other trials sharing the machine",
    )
    several = [r / speed_ratio(base, s, 1) for s, r, workers in measured if workers > 1]
    factor = float(np.median(several)) if several and len(single) < len(measured) else 1.0
    workers = tuple(sorted({workers for _, _, workers in measured}))
    return replace(base, multi_worker_factor=factor, num_workers=workers)


def _ratio(trial: TrialResult, cluster: Cluster) -> float | None:
    if trial.state not in (TrialState.COMPLETED, TrialState.STOPPED):
        return None
    if not trial.tokens_per_second or (trial.num_steps or 0) < _MIN_STEPS:
        return None
    try:
        config = parse_config(trial.config, TrialConfig)
        cost = estimate(config, cluster)
    except ConfigError:
        return None
    estimated = config.tokens_per_step / cost.step_seconds
    return trial.tokens_per_second / estimated


def speed_ratio(calibration: Calibration, num_params: float, num_workers: int) -> float:
    """Return measured over estimated speed at a size: between sizes along log N, held beyond.

    >>> measured = Calibration(is_measured=True, num_params=(1e3, 1e5), ratios=(0.5, 1.0))
    >>> round(speed_ratio(measured, 1e4, 1), 3), speed_ratio(measured, 1e9, 1)
    (0.75, 1.0)
    """
    if not calibration.is_measured:
        return 1.0
    ratio = float(np.interp(np.log(num_params), np.log(calibration.num_params), calibration.ratios))
    return ratio * (calibration.multi_worker_factor if num_workers > 1 else 1.0)
