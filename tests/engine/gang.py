"""Runs trials in gangs of real processes, many trials per gang: starting one is what takes time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("gang_worker.py")


def run_in_gang(
    orders: list[dict[str, Any]], world_size: int, folder: Path, seconds: float = 200
) -> list[dict[str, Any]]:
    """Return what rank 0 reports of each order: `reports` and `result`, or `error`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, order in enumerate(orders):
        order["world_size"] = world_size
        order["init_method"] = (folder / f"meeting-{number}").as_uri()
    (folder / "orders.json").write_text(json.dumps(orders))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder / "orders.json"), str(folder / "out.json"), str(rank)],
            env=environment,
            stderr=(folder / f"stderr-{rank}").open("w"),
        )
        for rank in range(world_size)
    ]  # fmt: skip
    try:
        for worker in workers:
            worker.wait(seconds)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
    out = folder / "out.json"
    assert out.exists(), (folder / "stderr-0").read_text()[-3000:]
    return json.loads(out.read_text())


def losses(outcome: dict[str, Any]) -> list[float]:
    """Return training and validation losses of every report, in one list."""
    assert "error" not in outcome, outcome["error"]
    return [report[key] for report in outcome["reports"] for key in ("train_loss", "val_loss")]
