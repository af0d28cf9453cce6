"""Compare the cost model with measured training steps: time, memory, layouts, intervals, speed.

    python benchmarks/costs.py --calibrate measured.csv --test measured.csv

Columns are those of `planner estimate --table`. A group is one source on one device, standing for
one cluster. Where both files are the same, each group is split in two halves by configuration (never
by row), several times with fixed seeds; otherwise a group of the test file is calibrated on the rows
of the same group in the calibration file, without configurations that are scored. Prints Markdown tables; docs/costs.md quotes them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from arguments import table_file

from planner.costs import parse_cluster, resolve_cluster
from planner.costs.calibration import Calibration, calibrate, uncalibrated
from planner.costs.candidates import LayoutProblem, enumerate_layouts
from planner.costs.layouts import evaluate, search_layouts
from planner.costs.memory import GPU_MEMORY
from planner.costs.scores import memory_constants_of, trial_of
from planner.costs.shapes import named_shape
from planner.costs.speed import default_efficiency
from planner.costs.tables import TableRow, UnreadRow, read_table
from planner.costs.workload import concatenate
from planner.errors import PlannerError

SEEDS = range(4)
EVERY = 10**6
Pair = tuple[list[TableRow], list[TableRow]]
Outcome = tuple[float, bool]
"""Signed relative error, and whether the interval covers."""


def _group(row: TableRow) -> str:
    return f"{row.source}/{row.cluster.device.name}"


def _by_group(rows: Iterable[TableRow]) -> dict[str, list[TableRow]]:
    groups: dict[str, list[TableRow]] = {}
    for row in rows:
        groups.setdefault(_group(row), []).append(row)
    return dict(sorted(groups.items()))


def _halves(rows: Sequence[TableRow], seed: int) -> Pair:
    """Split by configuration: rows to calibrate on, in random order, and rows to score."""
    rng = np.random.default_rng(seed)
    keys = rng.permutation(sorted({row.config_key for row in rows}))
    chosen = {key: rank for rank, key in enumerate(keys[: max(1, len(keys) // 2)])}
    train = sorted((r for r in rows if r.config_key in chosen), key=lambda r: chosen[r.config_key])
    return train, [row for row in rows if row.config_key not in chosen]


def _splits(calibration: list[TableRow], test: list[TableRow], same: bool) -> list[Pair]:
    if same:
        return [_halves(test, seed) for seed in SEEDS]
    pairs = []
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(calibration))
        pairs.append(([calibration[i] for i in order], test))
    return pairs


def _clusters(rows: Sequence[TableRow]) -> dict[tuple[object, ...], list[TableRow]]:
    found: dict[tuple[object, ...], list[TableRow]] = {}
    for row in rows:
        c = row.cluster
        key = (c.device.name, c.num_nodes, c.devices_per_node, c.device.achievable_fraction)
        found.setdefault(key, []).append(row)
    return found


def _score_time(fitted: Calibration, rows: Sequence[TableRow]) -> list[Outcome]:
    outcomes = []
    for same in _clusters(rows).values():
        found = fitted.predict(concatenate([r.workload for r in same]), same[0].cluster)
        truth = np.array([r.step_seconds for r in same], dtype=float)
        covered = (found.lower <= truth) & (truth <= found.upper)
        outcomes += list(zip(found.value / truth - 1.0, covered, strict=True))
    return outcomes


def _score_memory(fitted: Calibration, rows: Sequence[TableRow]) -> list[Outcome]:
    outcomes = []
    for row in rows:
        own = fitted
        if not fitted.num_memory_trials:
            own = replace(fitted, memory=memory_constants_of(row))
        found = own.predict_memory(concatenate([row.workload]))
        truth = row.memory_bytes or np.nan
        covered = bool(found.lower[0] <= truth <= found.upper[0])
        outcomes.append((float(found.value[0] / truth - 1.0), covered))
    return outcomes


Score = Callable[[Calibration, Sequence[TableRow]], list[Outcome]]


def _errors(pairs: list[Pair], num_trials: int, score: Score) -> list[Outcome]:
    outcomes = []
    for train, test in pairs:
        if not test:
            continue
        chosen = train[:num_trials]
        fitted = (
            calibrate([trial_of(r) for r in chosen]) if chosen else uncalibrated(test[0].cluster)
        )
        outcomes += score(fitted, test)
    return outcomes


def _cell(outcomes: list[Outcome]) -> str:
    if not outcomes:
        return "-"
    size = np.abs([e for e, _ in outcomes])
    return f"{np.median(size) * 100:.1f} / {np.quantile(size, 0.9) * 100:.1f}"


def _coverage(outcomes: list[Outcome]) -> str:
    return f"{np.mean([c for _, c in outcomes]):.0%}" if outcomes else "-"


def _print_table(title: str, headings: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def _report_errors(
    title: str, calibration: list[TableRow], test: list[TableRow], same: bool, score: Score
) -> None:
    sizes = (0, 3, 10, EVERY)
    pooled: dict[tuple[str, int], list[Outcome]] = {}
    lines, known = [], _by_group(calibration)
    for name, rows in _by_group(test).items():
        own = known.get(name, [])
        if same and len({r.config_key for r in rows}) < 4:
            pairs = [([], list(rows))]
        else:
            pairs = _splits(own, rows, same)
        found = {k: _errors(pairs, k, score) for k in sizes}
        is_dense = not any(r.shape.num_experts for r in rows)
        is_large = name.split("/")[0] not in ("vtrain_single", "mcore_golden")
        kinds = ["all"] + ["dense"] * is_dense + ["multi-node"] * is_large
        kinds += ["multi-node, dense"] * (is_dense and is_large)
        for kind in kinds:
            for k in sizes:
                pooled.setdefault((kind, k), []).extend(found[k])
        lines.append(
            [
                name,
                str(len(rows)),
                *(_cell(found[k]) for k in sizes),
                _coverage(found[0]),
                _coverage(found[10]),
            ]
        )
    for kind in ("multi-node, dense", "multi-node", "dense", "all"):
        if (kind, 0) in pooled:
            lines.append([f"**pooled, {kind}**", "", *(_cell(pooled[kind, k]) for k in sizes),
                          _coverage(pooled[kind, 0]), _coverage(pooled[kind, 10])])  # fmt: skip
    headings = [
        "group",
        "rows",
        "uncalibrated",
        "3 rows",
        "10 rows",
        "all of half",
        "covered at 0",
        "at 10",
    ]
    _print_table(title, headings, lines)


def _report_growth(rows: list[TableRow]) -> None:
    """Calibrate on the least numbers of devices of a source, score the greatest."""
    lines, pooled = [], []
    for name, own in _by_group(rows).items():
        sizes = sorted({int(r.cluster.num_devices) for r in own})
        if len(sizes) < 2 or len(own) < 8:
            continue
        most = 8 if sizes[0] <= 8 < sizes[-1] else sizes[0]
        small = [r for r in own if r.cluster.num_devices <= most]
        large = [r for r in own if r.cluster.num_devices == sizes[-1]]
        if len(small) < 3 or not large:
            continue
        found = _score_time(calibrate([trial_of(r) for r in small]), large)
        pooled += found
        lines.append(
            [
                name,
                str(len(small)),
                f"{sizes[-1]} devices, {len(large)} rows",
                _cell(found),
                _coverage(found),
            ]
        )
    lines.append(["**pooled**", "", "", _cell(pooled), _coverage(pooled)])
    _print_table("Step time from the smallest to the largest cluster, median / p90 in %",
                ["group", "calibrated on", "scored on", "error", "covered"], lines)  # fmt: skip


def _report_noise(rows: list[TableRow]) -> None:
    """Print how far measurements of one configuration lie from their median: no model can be nearer."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        kinds = [f"{row.source}, {'experts' if row.shape.num_experts else 'dense'}", "**pooled**"]
        for kind in kinds:
            seconds = groups.setdefault(kind, {}).setdefault(row.config_key, [])
            seconds.append(row.step_seconds or np.nan)
    lines = []
    for kind, configurations in sorted(groups.items(), key=lambda item: item[0].startswith("*")):
        several = [np.array(s) for s in configurations.values() if len(s) > 1]
        if several:
            off = [(error, True) for s in several for error in s / np.median(s) - 1.0]
            lines.append([kind, str(len(several)), str(len(off)), _cell(off)])
    _print_table("Spread of one configuration measured more than once, median / p90 in %",
                ["source", "configurations", "rows", "from their median"], lines)  # fmt: skip


def _report_regret(rows: list[TableRow], same: bool) -> None:
    problems: dict[tuple[object, ...], list[TableRow]] = {}
    for row in rows:
        s, w = row.shape, row.workload
        key = (_group(row), int(row.cluster.num_devices), s.num_layers, s.d_model, s.num_heads,
               s.sequence_length, int(w.step_tokens))  # fmt: skip
        problems.setdefault(key, []).append(row)
    problems = {k: v for k, v in problems.items() if len({r.config_key for r in v}) >= 5}
    lines = []
    for label, most in (
        ("uncalibrated", 0),
        ("10 rows of other problems", 10),
        ("all other problems", EVERY),
    ):
        extra, third = [], []
        for key, own in problems.items():
            others = [r for k, v in problems.items() if k[0] == key[0] and k != key for r in v]
            order = np.random.default_rng(len(extra)).permutation(len(others))[:most]
            chosen = [others[i] for i in order[:200]]
            fitted = (
                calibrate([trial_of(r) for r in chosen]) if chosen else uncalibrated(own[0].cluster)
            )
            found = fitted.predict(concatenate([r.workload for r in own]), own[0].cluster).value
            truth = np.array([r.step_seconds for r in own], dtype=float)
            ranked = truth[np.argsort(found)]
            extra.append(ranked[0] / truth.min() - 1.0)
            third.append(ranked[:3].min() / truth.min() - 1.0)
        if extra:
            lines.append(
                [
                    label,
                    str(len(extra)),
                    f"{np.mean(extra):.1%}",
                    f"{np.max(extra):.1%}",
                    f"{np.mean(third):.1%}",
                ]
            )
    _print_table("Extra step time of the layout picked, problems with five or more measured layouts",
                ["calibrated on", "problems", "mean", "max", "mean, best of three"], lines)  # fmt: skip


def _report_memory_verdicts(rows: list[TableRow]) -> None:
    """Compare the verdicts on rows that were run; rows of computed memory alone never were."""
    counts = {(ran, fits): 0 for ran in (True, False) for fits in (True, False)}
    for row in rows:
        if row.status == "mem-only":
            continue
        found = uncalibrated(row.cluster).predict_memory(concatenate([row.workload]))
        counts[
            "oom" not in row.status, bool(found.value[0] <= row.cluster.usable_memory_bytes)
        ] += 1
    _print_table("Out of memory: measured against predicted", ["measured", "predicted to fit", "predicted not to"],
                [["ran", str(counts[True, True]), str(counts[True, False])],
                 ["out of memory", str(counts[False, True]), str(counts[False, False])]])  # fmt: skip


def _report_speed() -> None:
    problem = LayoutProblem(
        shape=named_shape("llama-3-70b"), cluster=resolve_cluster(parse_cluster("1024xh100-sxm")),
        sequences_per_step=2048, precisions=("bf16", "fp8"),
    )  # fmt: skip
    everything, which = enumerate_layouts(problem)
    start = time.process_time()
    evaluate(
        everything, len(which), problem.cluster, GPU_MEMORY, default_efficiency(problem.cluster)
    )
    rate = len(which) / (time.process_time() - start)
    start = time.process_time()
    best = search_layouts(problem).best[0]
    seconds = time.process_time() - start
    _print_table("Speed on one core", ["what", "value"], [
        ["configurations per CPU second", f"{rate / 1e6:.2f} million"],
        ["best layout of llama-3-70b on 1,024 H100, CPU seconds", f"{seconds:.2f} ({len(which)} candidates: {best})"],
    ])  # fmt: skip


def _readable(path: Path) -> list[TableRow]:
    rows = read_table(path)
    unread: dict[tuple[str, str], int] = {}
    for row in rows:
        if isinstance(row, UnreadRow):
            unread[row.source, row.reason] = unread.get((row.source, row.reason), 0) + 1
    for (source, reason), number in unread.items():
        print(f"not estimated: {number} rows of {source}: {reason}")
    return [row for row in rows if isinstance(row, TableRow)]


def _without_scored(calibration: list[TableRow], test: list[TableRow]) -> list[TableRow]:
    """Return the rows of configurations that the test does not have; the others are said."""
    scored = {row.config_key for row in test}
    kept = [row for row in calibration if row.config_key not in scored]
    if len(kept) < len(calibration):
        number = len(calibration) - len(kept)
        print(f"left out of the calibration: {number} rows of configurations that are scored")
    return kept


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--calibrate", type=table_file, required=True, help="CSV of rows to fit on."
    )
    parser.add_argument(
        "--test", type=table_file, required=True, help="CSV of rows to score; may be the same."
    )
    parser.add_argument(
        "--tiny", action="store_true", help="Also score mcore_golden step times (CI models)."
    )
    options = parser.parse_args()
    same = options.calibrate.resolve() == options.test.resolve()
    test = _readable(options.test)
    calibration = test if same else _without_scored(_readable(options.calibrate), test)
    skipped = () if options.tiny else ("mcore_golden",)

    def timed(rows: list[TableRow]) -> list[TableRow]:
        return [r for r in rows if r.step_seconds and r.source not in skipped]

    _report_errors(
        "Step time, median / p90 of the absolute error in %",
        timed(calibration),
        timed(test),
        same,
        _score_time,
    )
    if same:
        _report_growth(timed(test))
    _report_noise(timed(test))
    _report_errors("Peak memory, median / p90 of the absolute error in %",
                  [replace(r, step_seconds=None) for r in calibration if r.memory_bytes],
                  [replace(r, step_seconds=None) for r in test if r.memory_bytes], same, _score_memory)  # fmt: skip
    _report_memory_verdicts([r for r in test if "mcore" not in r.source and r.is_recompute_known])
    _report_regret(timed(test), same)
    _report_speed()


if __name__ == "__main__":
    try:
        main()
    except PlannerError as error:
        raise SystemExit(f"error: {error}") from error
