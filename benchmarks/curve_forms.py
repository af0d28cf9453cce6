"""Critical batch, repeated data, schedules and downstream links on measured tables.

    python benchmarks/curve_forms.py --data FOLDER

FOLDER holds critical_batch.csv, repeated_data.csv, loss_curves/lr_schedules.csv and
overtraining_small.csv; what is missing is said and left out.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from planner.curves import (
    LossTrace,
    Points,
    fit_critical_batch,
    fit_downstream_link,
    fit_power_law,
    fit_repeated,
    fit_schedule_law,
)

BASE_BATCH = 256
FITTED_SCHEDULES = ("cosine_24000", "constant_24000", "wsdcon_9")
PUBLISHED_BATCH = {"85M": 745.32, "151M": 955.16, "302M": 1393.73, "604M": 1888.52, "1.2B": 2533.41}
SIZES = {"85M": 85e6, "151M": 151e6, "302M": 302e6, "604M": 604e6, "1.2B": 1.2e9}


def critical_batch(path: Path) -> None:
    """Print the critical batches beside the published ones (Zhang et al. 2024)."""
    found = {}
    for model, rows in pd.read_csv(path).groupby("model"):
        curve = fit_critical_batch(rows.batch_seqs512, rows.steps_to_target)
        found[str(model)] = curve.critical_batch(BASE_BATCH)
    for model, published in PUBLISHED_BATCH.items():
        print(f"critical batch {model:5s} {found[model]:8.1f}  published {published}")
    law = fit_power_law([SIZES[m] for m in found], list(found.values()))
    exponent = law.coefficients[1]
    print(
        f"  grows as N^{exponent.value:.3f} ({exponent.lower:.3f} to {exponent.upper:.3f}) at D = 20 N"
    )


def repeated(path: Path) -> None:
    """Print R_D* and R_N* with their profile intervals."""
    rows = pd.read_csv(path)
    points = Points(
        num_params=rows.N.to_numpy(float),
        num_tokens=rows.D.to_numpy(float),
        unique_tokens=rows.U.to_numpy(float),
        loss=rows.loss.to_numpy(float),
    )
    fit = fit_repeated(points)
    print(f"repeated data: objective {fit.objective_value:.7f}; {fit.describe()}")
    c = fit.repeat_params
    print(f"  R_N* {c.value:.3g}, {c.lower} to {c.upper}")
    for r_d, value in fit.profile[::3]:
        print(f"  R_D* {r_d:8.2f}  objective {value:.6f}")


def schedules(path: Path) -> None:
    """Print the error on schedules that the fit has not seen."""
    table = pd.read_csv(path)
    for model, curves in table.groupby("model"):
        traces = {}
        for name, rows in curves.groupby("schedule"):
            ordered = rows.sort_values("step")
            step = np.arange(1, int(ordered.step.max()) + 1)
            rate = np.interp(step, ordered.step, ordered.lr)
            warm = int(ordered.step.min())
            rate[:warm] = ordered.lr.iloc[0] * step[:warm] / warm
            traces[str(name)] = LossTrace(
                learning_rate=rate,
                step=ordered.step.to_numpy(float),
                loss=ordered.loss.to_numpy(float),
            )
        started = time.process_time()
        law = fit_schedule_law([traces[name] for name in FITTED_SCHEDULES], num_bootstraps=0)
        seconds = time.process_time() - started
        errors = {
            name: 100 * np.abs(law.predict(t.learning_rate, t.step) / t.loss - 1).mean()
            for name, t in traces.items()
            if name not in FITTED_SCHEDULES
        }
        text = ", ".join(f"{name} {error:.2f}" for name, error in errors.items())
        print(
            f"schedules {model}: mean relative error {np.mean(list(errors.values())):.3f} % on "
            f"{len(errors)} unseen ({text}); fitted in {seconds:.2f} CPU s"
        )


def downstream(path: Path) -> None:
    """Print the error of the link on the largest models, fitted on smaller ones, true losses."""
    table = pd.read_csv(path)
    small = table.N < 2e8
    for task in ("acc_hellaswag", "acc_lambada_openai", "acc_arc_easy", "acc_piqa"):
        rows = table[small & table[task].notna()]
        held = table[~small & table[task].notna()]
        link = fit_downstream_link(rows.loss_c4_val, rows[task])
        error = 100 * np.abs(link.accuracy(held.loss_c4_val) / held[task] - 1).mean()
        print(f"downstream {task}: mean relative error {error:.1f} % on {len(held)} larger models")


def main() -> None:
    """Print every table whose file is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    folder = parser.parse_args().data
    for name, show in (
        ("critical_batch.csv", critical_batch),
        ("repeated_data.csv", repeated),
        ("loss_curves/lr_schedules.csv", schedules),
        ("overtraining_small.csv", downstream),
    ):
        if (folder / name).is_file():
            show(folder / name)
        else:
            print(f"{name} is missing: left out")


if __name__ == "__main__":
    main()
