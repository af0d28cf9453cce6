"""The line of the ledger that puts a point into the books: how it is written, and read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from planner.budget import Spend
from planner.planning import Candidate, charge
from planner.search_space import merge
from planner.study import Study
from planner.trial import TrialConfig, TrialState
from planner.tuning.ledger import Line
from planner.tuning.records import TrialRecord

__all__ = ["proposed_line", "record_of", "too_large"]

_AMOUNTS: Final = tuple(each.name for each in fields(Spend))


def proposed_line(
    study: Study, found: Candidate, config: Mapping[str, Any], num_devices: int
) -> Line:
    """Return the line that puts a proposal into the books, with all that the core needs of it."""
    reason = found.reason
    if found.config is not None:
        reason = too_large(found.config.layout.num_workers, num_devices) or reason
    line: Line = {"kind": "proposed", "trial": found.trial, "point": found.point, "reason": reason}
    if found.config is None:
        return line | {"data": merge(study.base, found.point)}
    line["config"] = config
    cost = found.cost
    if cost is None:
        return line
    return line | {
        "planned": _amounts(charge(cost)),
        "startup_seconds": cost.startup_seconds,
        "num_params": cost.num_params,
        "num_params_non_embedding": cost.num_params_non_embedding,
        "usd_per_device_hour": None if cost.usd is None else cost.usd / cost.device_hours,
        "kwh_per_device_hour": None if cost.kwh is None else cost.kwh / cost.device_hours,
    }


def too_large(num_workers: int, num_devices: int) -> str | None:
    """Return that a trial has more workers than there are devices, or None."""
    if num_workers <= num_devices:
        return None
    return f"needs {num_workers} workers, {num_devices} devices are there"


def _amounts(spend: Spend) -> dict[str, float]:
    """Return a spend as plain data; `asdict` copies each number, and every proposal asks."""
    return {name: getattr(spend, name) for name in _AMOUNTS}


def record_of(line: Line, config: TrialConfig | None) -> TrialRecord:
    """Return the trial that a `proposed` or `copied` line describes."""
    data = line.get("config")
    usd, kwh = line.get("usd_per_device_hour"), line.get("kwh_per_device_hour")
    return TrialRecord(
        trial=line["trial"],
        point=line["point"],
        config=config,
        data=data or line.get("data") or {},
        planned=Spend(**line["planned"]) if line.get("planned") else None,
        num_params={k: line.get(k) for k in ("num_params", "num_params_non_embedding")},
        usd_per_device_hour=usd or 0.0,
        kwh_per_device_hour=kwh or 0.0,
        has_price=usd is not None,
        has_power=kwh is not None,
        startup_seconds=line.get("startup_seconds") or 0.0,
        state=TrialState.INFEASIBLE if line["reason"] else TrialState.PLANNED,
        reason=line["reason"],
    )
