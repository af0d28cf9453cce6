"""A short measurement of this machine: a few steps of a study's smallest and largest trial.

The engine runs both side by side, as the sweep would, in processes forked from one that has loaded
torch. What they took over what the cost model says is the pace of a rehearsal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from planner.engine.environment import worker_environment
from planner.planning import Candidate, Plan
from planner.trial import TrialConfig
from planner.tuning.sources import Pace

__all__ = ["probe"]

_TRAIN_SECONDS: Final = 0.2
"""Estimated time of the steps that are measured."""
_LONGEST_SECONDS: Final = 1.0
"""Estimated time of the fewest steps of a trial that is worth measuring."""
_MIN_STEPS: Final = 3
_MOST_SECONDS: Final = 60.0
"""After which a probe is given up: the machine is busy, or far slower than estimated."""
_NUM_VALIDATIONS: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """What one probe took."""

    estimated_step_seconds: float
    step_ratio: float
    """Measured over estimated time of a step."""
    validation_steps: float
    """Time of one validation, in measured steps."""
    cold_seconds: float
    """From the start of the process to its first step."""
    warm_seconds: float
    """The same without the imports."""


def probe(plan: Plan) -> Pace | None:
    """Return this machine's pace on a study, or None where it cannot tell within seconds.

    Only trials of one worker on the CPU are tried: other devices may not be here.
    """
    if not plan.cluster.device.is_cpu:
        return None
    chosen = _chosen(plan)
    if not chosen:
        return None
    with tempfile.TemporaryDirectory(prefix="planner-") as folder:
        measured = _run(chosen, [Path(folder) / each.trial for each in chosen])
    if not measured:
        return None
    return Pace(
        steps=tuple((m.estimated_step_seconds, m.step_ratio) for m in measured),
        validation_steps=sum(m.validation_steps for m in measured) / len(measured),
        startup_seconds=max(m.cold_seconds for m in measured),
        warm_seconds=sum(m.warm_seconds for m in measured) / len(measured),
    )


def _chosen(plan: Plan) -> list[Candidate]:
    """Return the trials with the shortest and the longest steps that can be tried here."""
    able = [
        c
        for c in plan.feasible
        if c.config is not None
        and c.cost is not None
        and c.config.layout.num_workers == 1
        and c.cost.step_seconds * _MIN_STEPS <= _LONGEST_SECONDS
    ]
    able.sort(key=lambda c: c.cost.step_seconds if c.cost else 0.0)
    side_by_side = min(plan.cluster.num_devices, plan.study.search.max_concurrent or 2)
    return [able[-1], able[0]][: max(1, min(2, side_by_side))] if able else []


def _run(chosen: Sequence[Candidate], folders: Sequence[Path]) -> list[_Measured]:
    """Return what the trials measured; nothing where one failed or they took too long."""
    environment = dict(os.environ)
    for each, folder in zip(chosen, folders, strict=True):
        config = _shortened(each)
        folder.mkdir()
        (folder / "config.json").write_text(config.model_dump_json())
        environment.update(worker_environment(config))
    command = [sys.executable, "-m", "planner.engine.side_by_side", *map(str, folders)]
    begun = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        code = process.wait(_MOST_SECONDS)
    except subprocess.TimeoutExpired:
        return []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code != 0:
        return []
    seconds = time.monotonic() - begun
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    load_seconds = max(0.0, seconds - max(result["elapsed_seconds"] for result in results))
    return [
        _measured(each, result, load_seconds) for each, result in zip(chosen, results, strict=True)
    ]


def _shortened(chosen: Candidate) -> TrialConfig:
    config, cost = chosen.config, chosen.cost
    assert config is not None and cost is not None  # noqa: S101, PT018 -- `_chosen` takes no other
    num_steps = max(_MIN_STEPS, round(_TRAIN_SECONDS / cost.step_seconds))
    train = config.train.replace(
        tokens=num_steps * config.tokens_per_step, num_validations=_NUM_VALIDATIONS
    )
    return config.replace(train=train)


def _measured(chosen: Candidate, result: Mapping[str, Any], load_seconds: float) -> _Measured:
    config, cost = chosen.config, chosen.cost
    assert config is not None and cost is not None  # noqa: S101, PT018 -- `_chosen` takes no other
    step = config.tokens_per_step / result["tokens_per_second"]
    steps = step * result["train_tokens"] / config.tokens_per_step
    validation = max(0.0, result["train_seconds"] - steps) / _NUM_VALIDATIONS
    warm = max(0.0, result["elapsed_seconds"] - result["train_seconds"])
    return _Measured(
        estimated_step_seconds=cost.step_seconds,
        step_ratio=step / cost.step_seconds,
        validation_steps=validation / step,
        cold_seconds=load_seconds + warm,
        warm_seconds=warm,
    )
