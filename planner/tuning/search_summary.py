"""What a search found beside its trials: the front, the importances, whether going on pays."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from planner.results import Results
from planner.run_folder import RunFolder

if TYPE_CHECKING:
    from planner.tuning.fronts import Front
    from planner.tuning.importances import Importances
    from planner.tuning.stopping import ExpectedGain

__all__ = ["SearchSummary", "read_summary", "summarise"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSummary:
    """The content of `search.json`; None is what cannot be said yet."""

    front: Front | None = None
    importances: Importances | None = None
    gain: ExpectedGain | None = None

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        gain = None if self.gain is None else asdict(self.gain)
        if self.gain is not None and gain is not None:
            gain["is_worth_it"] = self.gain.is_worth_it
        return {
            "front": None if self.front is None else asdict(self.front),
            "importances": None if self.importances is None else asdict(self.importances),
            "gain": gain,
        }

    def to_json(self) -> str:
        """Return the content of `search.json`."""
        return json.dumps({"schema": "planner.search/1", **self.to_data()}, indent=1) + "\n"


def summarise(results: Results) -> SearchSummary:
    """Return what the trials of a run show so far. Loads optuna."""
    from planner.tuning.fronts import front_of
    from planner.tuning.importances import importances_of
    from planner.tuning.stopping import gain_of

    return SearchSummary(
        front=front_of(results), importances=importances_of(results), gain=gain_of(results)
    )


def read_summary(folder: RunFolder) -> SearchSummary:
    """Return what the sweep wrote; empty for a run without it. Loads no optuna."""
    from planner.tuning.fronts import Front
    from planner.tuning.importances import Importances
    from planner.tuning.stopping import ExpectedGain

    if not folder.search.is_file():
        return SearchSummary()
    data = json.loads(folder.search.read_text(encoding="utf-8"))
    front, shares, gain = data["front"], data["importances"], data["gain"]
    if front is not None:
        front = Front(**{k: _tupled(v) for k, v in front.items()})
    if gain is not None:
        gain.pop("is_worth_it")
    return SearchSummary(
        front=front,
        importances=None if shares is None else Importances(**shares),
        gain=None if gain is None else ExpectedGain(**gain),
    )


def _tupled(value: Any) -> Any:
    return tuple(_tupled(each) for each in value) if isinstance(value, list) else value
