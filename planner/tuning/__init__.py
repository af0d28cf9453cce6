"""The sweep: which trial runs next, what it may spend, and how it survives an interruption.

    sweep(study)           run a study's trials and return its results
    resume(name)           go on with a run that was interrupted, or whose budget grew

`core` decides and knows neither Ray nor the time; an executor (`inline`, `ray`) runs what it
decides and tells it what happened. `ledger.jsonl` is the truth: the core's state is what its lines
say, applied in order. Importing this package loads neither ray nor optuna nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.lazy import lazy_names

if TYPE_CHECKING:
    from planner.tuning.sweeping import resume as resume
    from planner.tuning.sweeping import sweep as sweep

_HOMES = {
    "resume": "planner.tuning.sweeping",
    "sweep": "planner.tuning.sweeping",
}
"""Public name -> the module that defines it."""

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
