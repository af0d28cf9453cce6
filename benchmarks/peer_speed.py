"""CPU seconds of one fit by other packages, as JSON; run by `fit_speed.py --peer-python`.

    PYTHON_OF_PEERS benchmarks/peer_speed.py POINTS.csv

Needs nothing of planner: the interpreter is one in which peers are installed. Packages that it
lacks are named under `absent`.
"""

from __future__ import annotations

import csv
import functools
import json
import resource
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec

PEERS = {"simple_scaling_laws": "simple-scaling-laws", "chinchilla": "chinchilla", "vpnls": "vpnls"}
CHINCHILLA_GRID = {
    "e": (-0.5, 0.5), "a": (0.0, 10.0), "b": (5.0, 15.0), "alpha": (0.5, 1.0), "beta": (0.5, 1.0),
}  # fmt: skip
"""32 of the customary 4,500 starts: the time is scaled to all of them."""
CUSTOMARY_STARTS = 4500
NOT_TIMED = {
    "what": "installed, but no timing of it is written here",
    "seconds": None,
    "result": "",
}


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the children that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def simple_scaling_laws(rows: list[dict[str, float]]) -> list[dict[str, object]]:
    """Time its separable law, with one draw and with a thousand."""
    import polars
    from simple_scaling_laws import fit

    num = len(rows)
    frame = polars.DataFrame(
        {
            "training_run_id": [f"run{i}" for i in range(num)],
            "model_size__n_params": [row["num_params"] for row in rows],
            "dataset_size__n_tokens": [row["num_tokens"] for row in rows],
            "test_loss__cross_entropy": [row["loss"] for row in rows],
        }
    )
    found: list[dict[str, object]] = []
    for draws in (1, 1000):
        fit(frame, law="separable-power", n_draws=1, seed=0)
        started = cpu_seconds()
        model = fit(frame, law="separable-power", n_draws=draws, seed=0)
        spent = cpu_seconds() - started
        params = model.params("test_loss__cross_entropy")
        text = ", ".join(f"{key} {float(value):.4g}" for key, value in params.items())
        found.append({"what": f"separable law, {draws} draws", "seconds": spent, "result": text})
    return found


def chinchilla(rows: list[dict[str, float]]) -> list[dict[str, object]]:
    """Time its BFGS from 32 starts, scaled to 4,500, with Huber's delta of 1e-3."""
    from chinchilla import Chinchilla
    from chinchilla._metrics import log_huber

    with tempfile.TemporaryDirectory() as folder:
        model = Chinchilla(
            project_dir=folder,
            param_grid=CHINCHILLA_GRID,
            loss_fn=functools.partial(log_huber, delta=1e-3),
            log_level=50,
        )
        for row in rows:
            model.database.append(N=row["num_params"], D=row["num_tokens"], loss=row["loss"])
        started = cpu_seconds()
        model.fit()
        spent = (cpu_seconds() - started) * CUSTOMARY_STARTS / 32
    text = ", ".join(
        f"{k} {float(getattr(model, k)):.5g}" for k in ("E", "A", "B", "alpha", "beta")
    )
    return [{"what": "4,500 starts (scaled from 32)", "seconds": spent, "result": text}]


def main() -> None:
    """Print one JSON document."""
    with open(sys.argv[1], encoding="utf-8") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    timings = {"simple_scaling_laws": simple_scaling_laws, "chinchilla": chinchilla}
    found, absent = [], []
    for module, package in PEERS.items():
        if find_spec(module) is None:
            absent.append(package)
            continue
        for line in timings[module](rows) if module in timings else [NOT_TIMED]:
            found.append({"peer": f"{package} {version(package)}", **line})
    print(json.dumps({"timings": found, "absent": absent}))


if __name__ == "__main__":
    main()
