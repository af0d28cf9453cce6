"""Extrapolation error, coverage and regret of the curves on splits of real trainings.

    python benchmarks/curves.py --points points.csv --splits splits.csv

`--points` has the columns set, num_params, num_tokens, train_flops (else 6 N D), loss. `--splits`
has set, split, train_max_flops, train_max_params, test_min_flops, test_max_flops, test_min_params,
test_max_params; a limit that is not given excludes nothing.
Further splits of the same points are made here. Every set goes through one fixed procedure,
`planner.curves.fit` with its defaults. A split that is refused is listed with the reason, and counts
in no pooled figure.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pandas as pd
from arguments import table_file
from regret import print_regret
from split_tables import read_loss_table, read_splits

from planner.curves import Points, ScalingLaw, fit
from planner.errors import FitError, PlannerError

APART = ("porian",)
"""Families reported apart: tiny, embedding-heavy models whose protocol breaks the law."""

FAMILIES = {"epoch240": "massivetext", "ml_scalefit": "massivetext"}
LEVEL = 0.9


@dataclass(frozen=True)
class Outcome:
    """One split: errors per form in percent, and the intervals."""

    family: str
    errors: dict[str, float]
    covered: np.ndarray
    curve_covered: np.ndarray
    width: np.ndarray


def family_of(name: str) -> str:
    """Return the sweep that a set belongs to: splits of one family are correlated."""
    for prefix, family in FAMILIES.items():
        if name.startswith(prefix):
            return family
    return name.split("_")[0]


def as_points(rows: pd.DataFrame) -> Points:
    """Return rows of the table as points."""
    columns = ("num_params", "num_tokens", "loss", "train_flops")
    return Points(**{name: rows[name].to_numpy(dtype=float) for name in columns})


def form_errors(law: ScalingLaw, test: Points) -> dict[str, float]:
    """Return the median relative error in percent of every form of the law and of the mixture."""
    truth = np.log(test.loss)
    errors = {
        c.form: 100 * float(np.median(np.abs(np.expm1(c.log_loss(test.covariates()) - truth))))
        for c in law.components
    }
    predicted = law.predict(test.num_params, test.num_tokens, train_flops=test.train_flops)
    errors["mixture"] = 100 * float(np.median(np.abs(predicted.loss / test.loss - 1)))
    return errors


def run_split(table: pd.DataFrame, split: pd.Series) -> Outcome:
    """Fit on the smaller trainings, score on the larger ones."""
    rows = table[table["set"] == split["set"]]
    small = (rows.train_flops <= split.train_max_flops) & (
        rows.num_params <= split.train_max_params
    )
    large = (
        (rows.train_flops >= split.test_min_flops)
        & (rows.num_params >= split.test_min_params)
        & (rows.num_params <= split.test_max_params)
        & (rows.train_flops <= split.test_max_flops)
    )
    if not len(rows):
        raise FitError(f"the points have no set {split['set']!r}.")
    if not (large & ~small).any():
        raise FitError(f"no training to predict among the {len(rows)} of the set.")
    law = fit(as_points(rows[small]), level=LEVEL)
    test = as_points(rows[large & ~small])
    p = law.predict(test.num_params, test.num_tokens, train_flops=test.train_flops)
    return Outcome(
        family=family_of(str(split["set"])),
        errors=form_errors(law, test),
        covered=(test.loss >= p.loss_lower) & (test.loss <= p.loss_upper),
        curve_covered=(test.loss >= p.confidence_lower) & (test.loss <= p.confidence_upper),
        width=100 * (p.loss_upper - p.loss_lower) / p.loss,
    )


def print_pooled(title: str, outcomes: list[Outcome]) -> None:
    """Print errors per form, coverage and width over splits."""
    if not outcomes:
        return
    print(f"\n{title}: {len(outcomes)} splits")
    print("form         median   mean    p90    max   (% error of the loss, median of a split)")
    for form in sorted({form for o in outcomes for form in o.errors}):
        values = np.array([o.errors[form] for o in outcomes if form in o.errors])
        print(
            f"{form:12s} {np.median(values):6.2f} {values.mean():6.2f} "
            f"{np.quantile(values, 0.9):6.2f} {values.max():6.2f}"
        )
    covered = np.concatenate([o.covered for o in outcomes])
    curve = np.concatenate([o.curve_covered for o in outcomes])
    width = np.concatenate([o.width for o in outcomes])
    print(
        f"coverage of 90 % prediction intervals {100 * covered.mean():.1f} % of {covered.size} points "
        f"(per split, averaged: {100 * np.mean([o.covered.mean() for o in outcomes]):.1f} %); "
        f"of the curve's confidence interval {100 * curve.mean():.1f} %; "
        f"median width {np.median(width):.1f} % of the loss "
        f"(median over splits {np.median([np.median(o.width) for o in outcomes]):.1f} %)"
    )
    families: dict[str, list[np.ndarray]] = defaultdict(list)
    for outcome in outcomes:
        families[outcome.family].append(outcome.covered)
    text = (
        f"{name} {100 * np.concatenate(parts).mean():.0f} %" for name, parts in families.items()
    )
    print("coverage by family: " + ", ".join(text))


WINDOWS = ((1 / 8, 1.0), (1 / 40, 1 / 5))
"""Of the largest compute of a set: what is predicted by the splits made here."""
WINDOW_RATIOS = (8.0, 25.0, 80.0)
MIN_TRAIN, MIN_TEST, MIN_DISTINCT = 12, 4, 4


def make_splits(table: pd.DataFrame) -> pd.DataFrame:
    """Return splits of every set other than those given: other windows, other ratios."""
    rows = []
    for name, points in table.groupby("set"):
        top = points.train_flops.max()
        for low, high in WINDOWS:
            test = points[points.train_flops.between(top * low, top * high)]
            if len(test) < MIN_TEST:
                continue
            for ratio in WINDOW_RATIOS:
                train = points[points.train_flops <= test.train_flops.min() / ratio]
                distinct = [
                    np.log(train[c]).round(2).nunique() for c in ("num_params", "num_tokens")
                ]
                if len(train) >= MIN_TRAIN and min(distinct) >= MIN_DISTINCT:
                    rows.append(
                        {
                            "set": name,
                            "split": f"{1 / low:.0f}/{ratio:.0f}x",
                            "train_max_flops": train.train_flops.max(),
                            "train_max_params": np.inf,
                            "test_min_flops": test.train_flops.min(),
                            "test_max_flops": test.train_flops.max(),
                            "test_min_params": 0.0,
                            "test_max_params": np.inf,
                        }
                    )
    return pd.DataFrame(rows)


def run_splits(table: pd.DataFrame, splits: pd.DataFrame) -> list[Outcome]:
    """Run and print every split; return those that are not refused."""
    outcomes: list[Outcome] = []
    for _, split in splits.iterrows():
        name = f"{split['set'][:38]:38s} {split['split']:5s}"
        try:
            outcome = run_split(table, split)
        except PlannerError as error:
            print(f"{name} refused: {error.message}")
            continue
        outcomes.append(outcome)
        errors = " ".join(f"{form} {value:.2f}" for form, value in sorted(outcome.errors.items()))
        print(
            f"{name} {errors} | covers {100 * outcome.covered.mean():.0f} % "
            f"width {np.median(outcome.width):.1f} %",
            flush=True,
        )
    print(f"{len(outcomes)} splits scored, {len(splits) - len(outcomes)} refused")
    return outcomes


def main() -> None:
    """Run every split and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=table_file, required=True)
    parser.add_argument(
        "--splits", type=table_file, help="Scored besides those made from the points."
    )
    parser.add_argument("--no-regret", action="store_true")
    arguments = parser.parse_args()
    table = read_loss_table(arguments.points)
    groups = {"own splits": make_splits(table)}
    if arguments.splits:
        groups = {"given splits": read_splits(arguments.splits), **groups}
    started = time.process_time()
    outcomes = {title: run_splits(table, splits) for title, splits in groups.items()}
    if len(groups) > 1:
        outcomes["both together"] = [o for parts in outcomes.values() for o in parts]
    print(f"\nall fits in {time.process_time() - started:.1f} CPU s")
    for title, parts in outcomes.items():
        apart = ", ".join(APART)
        print_pooled(f"{title}, all but {apart}", [o for o in parts if o.family not in APART])
        print_pooled(f"{title}, {apart} alone", [o for o in parts if o.family in APART])
    if not arguments.no_regret:
        print_regret(table)


if __name__ == "__main__":
    try:
        main()
    except PlannerError as error:
        raise SystemExit(f"error: {error}") from error
