"""One process of a gang: trains every order in a file, one after another, and writes its reports."""

import json
import resource
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

from planner.config import parse_config
from planner.engine import train
from planner.trial import TrialConfig


def prepare(order: dict, rank: int) -> None:
    """Copy a folder, or let one worker hold only so many bytes more than it does now."""
    if "copy" in order and rank == 0:
        shutil.copytree(*order["copy"])
    limit = resource.RLIM_INFINITY
    if order.get("limited_rank") == rank:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + order["limit_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def carry_out(order: dict, rank: int) -> dict:
    reports: list[dict] = []
    prepare(order, rank)

    def keep(report: dict) -> bool:
        reports.append(report)
        return order.get("stop_after") != len(reports)

    result = train(
        parse_config(order["config"], TrialConfig),
        on_metrics=keep,
        checkpoint_dir=order.get("checkpoint_dir") and Path(order["checkpoint_dir"]),
        rank=rank,
        world_size=order["world_size"],
        init_method=order["init_method"],
    )
    return {"reports": reports, "result": asdict(result)}


def main() -> None:
    orders_path, out_path, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    outcomes = []
    for order in json.loads(orders_path.read_text()):
        start = time.process_time()
        outcomes.append(carry_out(order, rank))
        outcomes[-1]["cpu_seconds"] = time.process_time() - start
        out_path.with_suffix(f".{rank}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
