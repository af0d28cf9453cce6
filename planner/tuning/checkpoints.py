"""The checkpoints of a run: which one a trial goes on from, and which are dropped to save disk.

One policy for all trials (`search.checkpoints`). What a trial needs to go on from, because it runs,
waits, is paused in a population or was stopped by the budget, is never dropped.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.study import CheckpointPolicy
from planner.trial import TrialState
from planner.tuning.records import TrialRecord
from planner.tuning.state import SweepState
from planner.units import format_bytes

__all__ = ["CheckpointStore"]

_STATE = "state.json"


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """One complete checkpoint, and how much it is worth."""

    path: Path
    num_bytes: int
    worth: tuple[int, float]
    """The smallest is dropped first."""
    is_needed: bool


class CheckpointStore:
    """The folder of a run's checkpoints, one folder per trial.

    Args:
        folder: `checkpoints/` of the run.
        policy: What is kept.
    """

    def __init__(self, folder: Path, policy: CheckpointPolicy) -> None:
        self._folder, self._policy = folder, policy
        self._has_warned = False

    def of(self, trial: str) -> Path:
        """Return where a trial's checkpoints are."""
        return self._folder / trial

    def report(self, trial: str) -> dict[str, Any]:
        """Return the last report that the newest checkpoint of a trial holds; empty without one."""
        complete = _complete(self.of(trial))
        if not complete:
            return {}
        try:
            report = json.loads((complete[-1] / _STATE).read_text(encoding="utf-8")).get("report")
        except (OSError, ValueError):
            return {}
        return dict(report) if isinstance(report, dict) else {}

    def copy(self, trial: str, donor: str) -> None:
        """Give a trial the newest checkpoint of another in the place of its own."""
        complete = _complete(self.of(donor))
        if not complete:
            return
        newest, target = complete[-1], self.of(trial)
        copied = target.with_name(f".{trial}.copied")
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(newest, copied / newest.name)
        shutil.rmtree(target, ignore_errors=True)
        copied.rename(target)

    @property
    def is_limited(self) -> bool:
        """Whether anything is ever dropped."""
        return self._policy.max_bytes is not None or self._policy.keep_best is not None

    def tidy(self, sweep: SweepState) -> str | None:
        """Drop what the policy does not keep, the least useful first.

        Returns:
            What is wrong, once, where more is needed than the policy allows; else None.
        """
        if not self.is_limited:
            return None
        found = sorted(self._found(sweep), key=lambda each: each.worth)
        total = sum(each.num_bytes for each in found)
        most = math.inf if self._policy.max_bytes is None else self._policy.max_bytes
        for each in found:
            is_surplus = each.worth[0] == _SURPLUS
            if each.is_needed or not (total > most or is_surplus):
                continue
            _drop(each.path)
            total -= each.num_bytes
        if total <= most or self._has_warned:
            return None
        self._has_warned = True
        return (
            f"checkpoints take {format_bytes(total)}, more than search.checkpoints.max_bytes = "
            f"{format_bytes(most)}: trials go on from each of them, so all are kept"
        )

    def _found(self, sweep: SweepState) -> Iterator[_Checkpoint]:
        """Yield every checkpoint of every trial of the study."""
        ranks = self._ranks(sweep)
        for record in sweep.trials.values():
            complete = _complete(self.of(record.trial)) if record.attempts else []
            for path in complete:
                is_newest = path == complete[-1]
                needed = is_newest and _goes_on(record)
                rank = ranks.get(record.trial, math.inf)
                worth = (_worth(record, rank, self._policy.keep_best, is_newest), -rank)
                yield _Checkpoint(path, _num_bytes(path), worth, needed)

    def _ranks(self, sweep: SweepState) -> dict[str, float]:
        """Return the place of every finished trial, the best being 0."""
        done = [r for r in sweep.trials.values() if r.state is TrialState.COMPLETED]
        losses = [(loss, r.trial) for r in done if (loss := sweep.loss(r)) is not None]
        return {trial: float(i) for i, (_, trial) in enumerate(sorted(losses))}


_SURPLUS, _FORMER, _ENDED, _FINISHED = range(4)
"""Classes of worth, the smallest dropped first: beyond `keep_best`; not the newest; of a trial that
was cut; of one that ran to its end."""


def _worth(record: TrialRecord, rank: float, keep_best: int | None, is_newest: bool) -> int:
    if not _goes_on(record) and keep_best is not None and rank >= keep_best:
        return _SURPLUS
    if not is_newest:
        return _FORMER
    return _FINISHED if record.state is TrialState.COMPLETED else _ENDED


def _goes_on(record: TrialRecord) -> bool:
    return not record.state.is_finished or record.by_budget


def _complete(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a trial from oldest to newest."""
    return [path.parent for path in sorted(folder.glob(f"step-*/{_STATE}"))]


def _num_bytes(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError):  # the trial drops its older ones itself
        for path in folder.rglob("*"):
            total += path.stat().st_size
    return total


def _drop(folder: Path) -> None:
    """Delete a checkpoint so that half of it never looks whole."""
    with suppress(FileNotFoundError):
        (folder / _STATE).unlink()
    shutil.rmtree(folder, ignore_errors=True)
