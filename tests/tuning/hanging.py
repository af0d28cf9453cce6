"""A trainer that hangs, for the workers of `test_ray_executor`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from planner.trial import TrialConfig, TrialResult, TrialState


def hang_once(
    config: TrialConfig, *, trial: str, on_metrics: Any, checkpoint_dir: Path, **_: Any
) -> TrialResult:
    """Hang at the first attempt, report and end at the second."""
    mark = checkpoint_dir / "tried"
    if not mark.exists():
        checkpoint_dir.mkdir(parents=True)
        mark.touch()
        time.sleep(600)
    on_metrics({"val_loss": 1.0, "train_flops": 1.0})
    return TrialResult(trial=trial, config={}, state=TrialState.COMPLETED, val_loss=1.0)
