"""`python -m planner.engine CONFIG.json [--out DIR]`: one trial, alone or under torchrun."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planner.config import load_config
from planner.engine.environment import torchrun_place, worker_environment
from planner.errors import PlannerError
from planner.trial import TrialConfig, TrialResult, TrialState

_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run one trial; print its result as JSON and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m planner.engine", description="Train one configuration.", allow_abbrev=False
    )
    parser.add_argument("config", type=Path, help="TrialConfig as JSON or YAML")
    parser.add_argument("--out", type=Path, help="folder for checkpoints and result.json")
    options = parser.parse_args(arguments)
    try:
        return _run(options.config, options.out)
    except PlannerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return _INTERRUPTED


def _run(path: Path, out: Path | None) -> int:
    config = load_config(path, TrialConfig)
    place = torchrun_place(os.environ)
    os.environ.update({k: v for k, v in worker_environment(config).items() if k not in os.environ})
    checkpoint_dir = None if out is None else out / "checkpoints"
    if place.world_size > 1:
        from planner.engine.training import train

        result = train(
            config, on_metrics=_print_metrics, checkpoint_dir=checkpoint_dir, rank=place.rank,
            world_size=place.world_size, init_method=place.init_method,
        )  # fmt: skip
    else:
        from planner.engine.launch import train_local

        result = train_local(config, on_metrics=_print_metrics, checkpoint_dir=checkpoint_dir)
    if place.rank == 0:
        _write(result, out)
    return 0 if result.state in (TrialState.COMPLETED, TrialState.STOPPED) else 1


def _print_metrics(metrics: dict[str, Any]) -> None:
    rate = metrics["tokens_per_second"]
    print(
        f"step {metrics['num_steps']}  val_loss {metrics['val_loss']:.4f}  "
        f"train_loss {metrics['train_loss']:.4f}  {rate:.0f} tokens/s",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def _write(result: TrialResult, out: Path | None) -> None:
    text = json.dumps(asdict(result), indent=2)
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "result.json").write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
