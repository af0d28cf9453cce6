"""planner: I have this much compute, what should I train, and how?

The stages are functions, each from the previous stage's value to the next:

    study = load_study("quickstart")
    outlook = plan(study)
    results = sweep(study)
    law = fit(results)
    recommendation = recommend(law, budget, study)

Everything is loaded when it is first used: `import planner` loads neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.budget import Budget as Budget
    from planner.curves import ScalingLaw as ScalingLaw
    from planner.curves import fit as fit
    from planner.trial import TrialConfig as TrialConfig
    from planner.trial import TrialResult as TrialResult

__version__ = version("planner")

_HOMES = {
    "Budget": "planner.budget",
    "ScalingLaw": "planner.curves",
    "TrialConfig": "planner.trial",
    "TrialResult": "planner.trial",
    "fit": "planner.curves",
}
"""Public name -> the module that defines it."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'planner' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
