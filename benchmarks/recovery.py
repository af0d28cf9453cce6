"""How often 90 % intervals hold known coefficients, per form, with noise and 5 % outliers.

    python benchmarks/recovery.py [--seeds 100] [--first 0] [--bootstraps 200] [--case chinchilla ...]

Every seed is a fresh table (`recovery_cases.py`). Prints the share of seeds in which each
coefficient lies in its interval; 90 % of 100 seeds is 84 to 96 nineteen times in twenty.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from recovery_cases import CASES


def main() -> None:
    """Print one line per form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="The first seed.")
    parser.add_argument("--bootstraps", type=int, default=200)
    parser.add_argument(
        "--case", nargs="*", default=list(CASES), choices=list(CASES), metavar="FORM"
    )
    arguments = parser.parse_args()
    pooled = []
    for name in arguments.case:
        started = time.process_time()
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        rows = [CASES[name].inside(seed, arguments.bootstraps) for seed in seeds]
        spent = (time.process_time() - started) / arguments.seeds
        shares = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        pooled += list(shares.values())
        text = "  ".join(f"{key} {100 * share:.0f}" for key, share in shares.items())
        mean = 100 * np.mean(list(shares.values()))
        print(f"{name:24s} {mean:4.0f} %  {text}  ({spent:.2f} CPU s a table)", flush=True)
    print(f"all {len(pooled)} coefficients: {100 * np.mean(pooled):.1f} %")


if __name__ == "__main__":
    main()
