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

from importlib.metadata import version
from typing import TYPE_CHECKING

from planner.lazy import lazy_names

if TYPE_CHECKING:
    from planner.budget import Budget as Budget
    from planner.budget import Spend as Spend
    from planner.costs import CostEstimate as CostEstimate
    from planner.costs import estimate as estimate
    from planner.curves import ScalingLaw as ScalingLaw
    from planner.curves import fit as fit
    from planner.jobs import Job as Job
    from planner.jobs import submit as submit
    from planner.planning import Plan as Plan
    from planner.planning import plan as plan
    from planner.recommendation import Recommendation as Recommendation
    from planner.recommendation import recommend as recommend
    from planner.report import write_report as write_report
    from planner.results import Results as Results
    from planner.results import read_results as read_results
    from planner.run_folder import RunFolder as RunFolder
    from planner.search_space import SearchSpace as SearchSpace
    from planner.study import Study as Study
    from planner.study import load_study as load_study
    from planner.trial import TrialConfig as TrialConfig
    from planner.trial import TrialResult as TrialResult
    from planner.tuning import resume as resume
    from planner.tuning import sweep as sweep

__version__ = version("planner")

_HOMES = {
    "Budget": "planner.budget",
    "CostEstimate": "planner.costs",
    "Job": "planner.jobs",
    "Plan": "planner.planning",
    "Recommendation": "planner.recommendation",
    "Results": "planner.results",
    "RunFolder": "planner.run_folder",
    "ScalingLaw": "planner.curves",
    "SearchSpace": "planner.search_space",
    "Spend": "planner.budget",
    "Study": "planner.study",
    "TrialConfig": "planner.trial",
    "TrialResult": "planner.trial",
    "estimate": "planner.costs",
    "fit": "planner.curves",
    "load_study": "planner.study",
    "plan": "planner.planning",
    "read_results": "planner.results",
    "recommend": "planner.recommendation",
    "resume": "planner.tuning",
    "submit": "planner.jobs",
    "sweep": "planner.tuning",
    "write_report": "planner.report",
}
"""Public name -> the module that defines it."""

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
