"""Time of one global fit and of a bootstrap, beside scipy's usual way, in one process.

    python benchmarks/fit_speed.py --points points.csv [--set epoch240]

CPU seconds of one core (`OMP_NUM_THREADS=1`). scipy's L-BFGS-B runs from a random sample of the
customary 4,500 starts, with a numeric and with an analytic gradient, and is scaled to all of them.
For `epoch240` the two points that the file leaves out are added. `--peer-python PYTHON` names an
interpreter in which peers are installed (simple-scaling-laws needs Python 3.12); they are timed on
the same points in the same run, and those that it lacks are named.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from arguments import table_file
from scipy.optimize import minimize
from scipy.special import logsumexp

from planner.curves import Points, fit, fit_surface

LEFT_OUT = (
    (9293216132.140877, 5.031322209115321e21, 2.1794149286876103),
    (6795614805.310381, 1.2956022673438285e22, 2.0773942450664395),
)
"""(N, C, loss) of the two largest trainings that Epoch AI digitised."""

STARTS = list(
    itertools.product(
        np.arange(0, 26, 5), np.arange(0, 26, 5), np.arange(-1, 1.1, 0.5),
        np.arange(0, 2.1, 0.5), np.arange(0, 2.1, 0.5),
    )
)  # fmt: skip
DELTA = 1e-3
REPEATS = 15


def cpu_seconds(call: Callable[[], object], repeats: int = 1) -> float:
    """Return the median CPU seconds of a call."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return float(np.median(times))


def usual_way(
    n: np.ndarray, d: np.ndarray, loss: np.ndarray, num_starts: int, analytic: bool
) -> tuple[float, float, float]:
    """Return (CPU s scaled to all starts, least objective, share of starts that reach it)."""
    log_n, log_d, log_l = np.log(n), np.log(d), np.log(loss)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        a, b, e, alpha, beta = theta
        terms = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])
        total = logsumexp(terms, axis=0)
        residual = total - log_l
        size = np.abs(residual)
        value = np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA)).sum()
        shares = np.exp(terms - total) * np.clip(residual, -DELTA, DELTA)
        gradient = np.array(
            [shares[0].sum(), shares[1].sum(), shares[2].sum(),
             -(shares[0] * log_n).sum(), -(shares[1] * log_d).sum()]
        )  # fmt: skip
        return float(value), gradient

    chosen = np.random.default_rng(0).choice(len(STARTS), num_starts, replace=False)
    started = time.process_time()
    values = []
    for i in chosen:
        if analytic:
            values.append(minimize(objective, STARTS[i], jac=True, method="L-BFGS-B").fun)
        else:
            values.append(minimize(lambda t: objective(t)[0], STARTS[i], method="L-BFGS-B").fun)
    spent = (time.process_time() - started) * len(STARTS) / num_starts
    found = np.array(values)
    return spent, float(found.min()), float((found <= found.min() * (1 + 1e-6)).mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=table_file, required=True)
    parser.add_argument("--set", default="epoch240")
    parser.add_argument("--starts", type=int, default=40)
    parser.add_argument("--peer-python", default=sys.executable, help="Where peers are installed.")
    parser.add_argument("--every-set", action="store_true", help="Compare objectives on all sets.")
    arguments = parser.parse_args()
    table = pd.read_csv(arguments.points)
    if arguments.every_set:
        compare_objectives(table)
        return
    rows = table[table["set"] == arguments.set]
    n, d, loss = (rows[c].to_numpy(float) for c in ("num_params", "num_tokens", "loss"))
    if arguments.set == "epoch240":
        extra = np.array(LEFT_OUT)
        n, loss = np.append(n, extra[:, 0]), np.append(loss, extra[:, 2])
        d = np.append(d, extra[:, 1] / (6 * extra[:, 0]))
    weights = np.random.default_rng(0).multinomial(n.size, np.full(n.size, 1 / n.size), 1000)
    weights = weights.astype(float)
    best = fit_surface(n, d, loss)
    one = cpu_seconds(lambda: fit_surface(n, d, loss), REPEATS)
    many = cpu_seconds(lambda: fit_surface(n, d, loss, weights=weights), 3)
    points = Points(num_params=n, num_tokens=d, loss=loss)
    whole = cpu_seconds(lambda: fit(points), 1)
    print(f"{arguments.set}: {n.size} points")
    print(
        f"planner, one global fit         {1e3 * one:9.2f} ms  objective {best.objective[0]:.14e}"
    )
    print(f"planner, 1,000 bootstraps       {many:9.2f} s   each with its own global start")
    print(f"planner, fit() with the mixture {whole:9.2f} s   all forms, back-tests, 1,000 draws")
    e, a, b, alpha, beta = best.params[0]
    print(f"  E {e:.6f}  A {a:.3f}  B {b:.3f}  alpha {alpha:.6f}  beta {beta:.6f}")
    law = fit(points, form="chinchilla")
    print(
        "  90 %: " + ", ".join(f"{c.name} {c.lower:.4g} to {c.upper:.4g}" for c in law.coefficients)
    )
    for analytic in (False, True):
        spent, value, share = usual_way(n, d, loss, arguments.starts, analytic)
        kind = "analytic" if analytic else "numeric"
        print(
            f"scipy L-BFGS-B, {kind:8s} grad  {spent:9.2f} s   4,500 starts (scaled from "
            f"{arguments.starts}), least {value:.9e}, reached by {100 * share:.0f} %"
        )
    print_peers(arguments.peer_python, n, d, loss)


def print_peers(python: str, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> None:
    """Print what other packages take on the same points, and which are absent."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "points.csv"
        pd.DataFrame({"num_params": n, "num_tokens": d, "loss": loss}).to_csv(table, index=False)
        script = Path(__file__).with_name("peer_speed.py")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [python, "-W", "ignore", str(script), str(table)],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
    if done.returncode:
        print(f"peers could not be timed: {done.stderr.strip().splitlines()[-1]}")
        return
    report = json.loads(done.stdout.splitlines()[-1])
    for row in report["timings"]:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:9.3f} s"
        print(f"{row['peer']:31s} {seconds}   {row['what']}; {row['result']}")
    print(f"peers not installed: {', '.join(report['absent']) or 'none'}")


def compare_objectives(table: pd.DataFrame) -> None:
    """Print our objective beside the least of 4,500 random starts, for every set."""
    from planner.curves.newton import SeparableProblem
    from planner.curves.newton import minimize as polish

    for name, rows in table.groupby("set"):
        n, d, loss = (rows[c].to_numpy(float) for c in ("num_params", "num_tokens", "loss"))
        ours = float(fit_surface(n, d, loss).objective[0])
        x, y = np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean()
        top = np.log(loss.mean())
        unit = np.random.default_rng(1).random((4500, 5))
        starts = np.array([top - 4, top - 4, top - 6, 0.02, 0.02]) + unit * [4, 4, 6, 1.5, 1.5]
        least = np.inf
        for part in np.array_split(starts, 45):
            _, values = polish(SeparableProblem(x, y, loss), part, np.ones((len(part), n.size)))
            least = min(least, float(np.nanmin(values)))
        print(
            f"{str(name)[:42]:42s} n {n.size:4d}  ours {ours:.10e}  ours/least - 1 {ours / least - 1:+.1e}"
        )


if __name__ == "__main__":
    main()
