"""Tables and lines of what a search found beside its trials."""

from __future__ import annotations

from collections.abc import Sequence

from planner.report.contents import Contents
from planner.report.tables import Table, cell
from planner.results import Copy, setting_of
from planner.tuning.fronts import Front
from planner.units import format_bytes, format_count, format_flops, format_number, format_seconds

__all__ = ["ancestry", "copies_table", "front_table", "importances_table", "written"]

_MOST_ROWS = 20


def written(metric: str, value: float) -> str:
    """Return a metric's value as people read it.

    >>> written("peak_memory_bytes", 2.0**30), written("val_loss", 3.14159)
    ('1.0 GiB', '3.142')
    """
    if metric.endswith("_bytes"):
        return format_bytes(value)
    if metric.endswith("_seconds"):
        return format_seconds(value)
    if metric.startswith("num_") or metric.endswith("_tokens"):
        return format_count(value)
    return format_flops(value) if metric.endswith("_flops") else format_number(value, 4)


def front_table(contents: Contents, front: Front) -> Table:
    """Return the trials on the front with what varied, the best first objective on top."""
    parameters = list(contents.results.study.search_space.parameters)
    trials = {trial.trial: trial for trial in contents.results.trials}
    rows = [
        (
            name,
            *(cell(setting_of(trials[name], parameter)) for parameter in parameters),
            *(written(*pair) for pair in zip(front.metrics, values, strict=True)),
        )
        for name, values in zip(front.trials, front.values, strict=True)
    ]
    shown = rows[:: max(1, -(-len(rows) // _MOST_ROWS))]
    return Table(
        caption="Trials that no other trial beats in every objective",
        headings=(
            "trial",
            *(name.rpartition(".")[2].replace("_", " ") for name in parameters),
            *(name.replace("_", " ") for name in front.metrics),
        ),
        rows=tuple(shown),
        note="" if len(shown) == len(rows) else f"{len(shown)} of {len(rows)} on the front.",
    )


def importances_table(contents: Contents) -> Table | None:
    """Return the parameters with their shares, or None."""
    found = contents.summary.importances
    if found is None:
        return None
    return Table(
        caption="What decides whether a trial is among the best",
        headings=("parameter", "share"),
        rows=tuple((name, f"{share:.0%}") for name, share in found.shares.items()),
        note=f"PED-ANOVA over {found.num_trials} completed trials; a few trials say little.",
    )


def ancestry(copies: Sequence[Copy], trial: str) -> list[tuple[str, float, float | None]]:
    """Return (member, FLOPs from, FLOPs to) of the training that a member's model has had.

    The first starts at 0, each starts where the one before ends, and the last has no end.
    """
    found: list[tuple[str, float, float | None]] = []
    end: float | None = None
    while True:
        before = [
            copy
            for copy in copies
            if copy.trial == trial and (end is None or copy.train_flops < end)
        ]
        if not before:
            return [(trial, 0.0, end), *reversed(found)]
        last = max(before, key=lambda copy: copy.train_flops)
        found.append((trial, last.train_flops, end))
        trial, end = last.donor, last.train_flops


def copies_table(contents: Contents) -> Table | None:
    """Return who copied whom, when, and what changed, or None."""
    copies = contents.results.copies
    if not copies:
        return None
    sign = 1.0 if contents.results.study.first_objective.mode == "min" else -1.0
    rows = [
        (
            copy.trial,
            copy.donor,
            str(copy.generation),
            f"{copy.fidelity:.0%}",
            "-" if copy.loss is None else format_number(sign * copy.loss, 4),
            "-" if copy.donor_loss is None else format_number(sign * copy.donor_loss, 4),
            "; ".join(
                f"{name.rpartition('.')[2].replace('_', ' ')} {cell(old)} to {cell(new)}"
                for name, (old, new) in copy.changed.items()
            )
            or "nothing",
        )
        for copy in copies
    ]
    return Table(
        caption="Who copied whom",
        headings=(
            "member",
            "copied",
            "meeting",
            "compute",
            "its own loss",
            "the other's",
            "and changed",
        ),
        rows=tuple(rows[:_MOST_ROWS]),
        text_columns=frozenset({0, 1, 6}),
        long_columns=frozenset({6}),
        note="" if len(rows) <= _MOST_ROWS else f"{_MOST_ROWS} of {len(rows)} copies.",
    )
