"""The tables of a report, as headings and cells of text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from planner.curves import best_sizes
from planner.recommendation import Option, Recommendation
from planner.report.contents import Contents
from planner.results import setting_of
from planner.trial import TrialResult, TrialState
from planner.units import (
    format_count,
    format_flops,
    format_kwh,
    format_number,
    format_seconds,
    format_usd,
)

__all__ = [
    "Table",
    "best_sizes_table",
    "cell",
    "coefficients",
    "runners_up",
    "settings",
    "trials",
    "unfinished",
]

_MAX_TRIALS: Final = 50
_ORDER: Final = [
    TrialState.COMPLETED, TrialState.STOPPED, TrialState.RUNNING, TrialState.PLANNED,
    TrialState.DIVERGED, TrialState.OUT_OF_MEMORY, TrialState.FAILED, TrialState.INFEASIBLE,
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Headings and rows of text; the first column names the row."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: frozenset[int] = frozenset({0})
    """Columns aligned to the left; the others hold numbers."""
    long_columns: frozenset[int] = frozenset()
    """Columns whose text may take several lines."""
    note: str = ""


def _optional(value: float | None, write: Any) -> str:
    return "-" if value is None else str(write(value))


def runners_up(answer: Recommendation) -> Table:
    """Return the recommended option and its runners-up, with what each gives up."""
    rows = [_option_row("recommended", answer.choice, "", "")]
    rows += [_option_row(r.title, r.option, r.gives_up, r.gains) for r in answer.runners_up]
    headings = ["", "layers x width", "params", "tokens", "learning rate", "precision", "workers",
                "loss", "time", "device-hours", "USD", "gives up", "gains"]  # fmt: skip
    cells = list(zip(headings, *rows, strict=True))
    kept = [
        column
        for column in cells
        if not (column[0] == "USD" and answer.choice.usd is None)
        and not (column[0] == "precision" and len(set(column[1:])) == 1)
    ]
    names = [column[0] for column in kept]
    long = frozenset({names.index("gives up"), names.index("gains")})
    return Table(
        caption="The recommended configuration and its runners-up",
        headings=tuple(names),
        rows=tuple(zip(*(column[1:] for column in kept), strict=True)),
        text_columns=frozenset({0}) | long,
        long_columns=long,
    )


def _option_row(title: str, option: Option, gives_up: str, gains: str) -> tuple[str, ...]:
    return (
        title,
        f"{option.num_layers} x {option.d_model}",
        format_count(option.num_params),
        format_count(option.train_tokens),
        format_number(option.learning_rate),
        option.precision,
        str(option.num_workers),
        f"{option.predicted_loss:.3f}",
        format_seconds(option.seconds),
        format_number(option.device_hours),
        _optional(option.usd, format_usd),
        gives_up,
        gains,
    )


def trials(contents: Contents) -> Table:
    """Return the trials, what varied first and the best on top; at most fifty of them."""
    parameters = list(contents.results.study.search_space.parameters)
    measured = [name for name in _MEASURED if name not in parameters]
    ordered = sorted(contents.results.trials, key=_trial_order)
    shown = ordered[:_MAX_TRIALS]
    if all(trial.usd is None for trial in shown):
        measured.remove("usd")
    headings = (
        "trial",
        *(_SHORT.get(name, name.rpartition(".")[2].replace("_", " ")) for name in parameters),
        "state",
        *(_MEASURED[name][0] for name in measured),
    )
    note = ""
    if len(ordered) > len(shown):
        note = f"{len(shown)} of {len(ordered)} trials; all are in results.csv."
    return Table(
        caption="Trials, the best first",
        headings=headings,
        rows=tuple(_trial_row(trial, parameters, measured) for trial in shown),
        text_columns=frozenset({0, len(parameters) + 1}),
        note=note,
    )


def _trial_order(trial: TrialResult) -> tuple[int, float, str]:
    loss = math.inf if trial.val_loss is None else trial.val_loss
    return _ORDER.index(trial.state), loss, trial.trial


_SHORT: Final = {"model": "layers x width"}
_MEASURED: Final[dict[str, tuple[str, str, Callable[[Any], str]]]] = {
    "params": ("params", "num_params", format_count),
    "train.tokens": ("tokens", "train_tokens", format_count),
    "loss": ("val loss", "val_loss", lambda loss: f"{loss:.4f}"),
    "train.flops": ("FLOPs", "train_flops", lambda n: format_flops(n).removesuffix(" FLOPs")),
    "seconds": ("time", "elapsed_seconds", format_seconds),
    "device_hours": ("device-hours", "device_hours", format_number),
    "usd": ("USD", "usd", format_usd),
}
"""Parameter that would say the same -> heading, column of TrialResult, how to write it."""


def _trial_row(
    trial: TrialResult, parameters: Sequence[str], measured: Sequence[str]
) -> tuple[str, ...]:
    return (
        trial.trial,
        *(cell(setting_of(trial, name)) for name in parameters),
        str(trial.state).replace("_", " "),
        *(
            _optional(getattr(trial, column), write)
            for _, column, write in (_MEASURED[name] for name in measured)
        ),
    )


def cell(value: object) -> str:
    """Return a parameter's value as people read it.

    >>> cell({"num_layers": 4, "d_model": 96, "num_heads": 6}), cell(0.0031), cell(None)
    ('4 x 96', '0.0031', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, dict):
        if {"num_layers", "d_model"} <= set(value):
            return f"{value['num_layers']} x {value['d_model']}"
        return json.dumps(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if abs(value) >= 1e5:
        return format_count(value) if abs(value) < 1e15 else format_number(value)
    return format_number(value) if isinstance(value, float) else str(value)


def unfinished(contents: Contents) -> Table | None:
    """Return the trials that found no loss to learn from, with the reason, or None."""
    states = (
        TrialState.DIVERGED, TrialState.OUT_OF_MEMORY, TrialState.FAILED, TrialState.INFEASIBLE,
        TrialState.RUNNING, TrialState.PLANNED,
    )  # fmt: skip
    found = sorted(contents.with_state(*states), key=_trial_order)[:_MAX_TRIALS]
    if not found:
        return None
    rows = [
        (
            trial.trial,
            str(trial.state).replace("_", " "),
            trial.reason or "no reason was recorded",
            _optional(trial.device_hours, format_number),
        )
        for trial in found
    ]
    return Table(
        caption="Trials that did not finish",
        headings=("trial", "state", "reason", "device-hours"),
        rows=tuple(rows),
        text_columns=frozenset({0, 1, 2}),
        long_columns=frozenset({2}),
    )


def coefficients(contents: Contents) -> Table | None:
    """Return the law's coefficients with their intervals, or None."""
    law = contents.law
    if law is None:
        return None
    rows = [
        (
            item.name,
            format_number(item.value, 4),
            "unbounded" if item.lower is None else format_number(item.lower, 4),
            "unbounded" if item.upper is None else format_number(item.upper, 4),
        )
        for item in law.coefficients
    ]
    return Table(
        caption=f"Coefficients of the law ({law.level:.0%} intervals)",
        headings=("coefficient", "value", "lower", "upper"),
        rows=tuple(rows),
    )


def best_sizes_table(contents: Contents) -> Table | None:
    """Return the best size by each method, at the compute of the answer where there is one."""
    law, answer = contents.law, contents.recommendation
    if law is None:
        return None
    sizes = best_sizes(law) if answer is None else answer.best_sizes

    def span(low: float | None, high: float | None, text: Callable[[float], str]) -> str:
        return "-" if low is None or high is None else f"{text(low)} to {text(high)}"

    rows = [
        (
            item.method,
            _optional(item.num_params, format_count),
            span(item.num_params_lower, item.num_params_upper, format_count),
            _optional(item.exponent, lambda value: f"{value:.3f}"),
            span(item.exponent_lower, item.exponent_upper, lambda value: f"{value:.3f}"),
            item.refusal or "",
        )
        for item in sizes
    ]
    return Table(
        caption=f"Best size by each method at {format_flops(sizes[0].train_flops)}",
        headings=("method", "parameters", "interval", "exponent", "interval", "why not"),
        rows=tuple(rows),
        text_columns=frozenset({0, 5}),
        long_columns=frozenset({5}),
    )


def settings(answer: Recommendation) -> Table:
    """Return the recommended configuration, setting by setting."""
    row, config = answer.choice, answer.config
    pairs = [
        ("layers x width", f"{row.num_layers} x {row.d_model}"),
        ("heads", str(row.num_heads)),
        ("parameters", f"{format_count(row.num_params)} "
         f"({format_count(row.num_params_non_embedding)} without embeddings)"),
        ("training tokens", f"{format_count(row.train_tokens)} "
         f"({row.train_tokens / row.num_params:.3g} per parameter)"),
        ("tokens per step", f"{format_count(row.tokens_per_step)} "
         f"({row.sequences_per_step} sequences of {config.model.sequence_length})"),
        ("steps", f"{row.num_steps:,}"),
        ("peak learning rate", format_number(row.learning_rate)),
        ("schedule", config.schedule.name),
        ("precision", row.precision),
        ("workers", str(row.num_workers) + (
            f", sharded over {row.shard_parallel}" if row.shard_parallel > 1 else "")),
        ("micro-batch", f"{row.micro_batch_sequences} sequences per worker"),
        ("training compute", format_flops(row.train_flops)),
        ("time", format_seconds(row.seconds)),
        ("device-hours", format_number(row.device_hours)),
        ("money", _optional(row.usd, format_usd)),
        ("energy", _optional(row.kwh, format_kwh)),
    ]  # fmt: skip
    return Table(
        caption="The recommended configuration",
        headings=("setting", "value"),
        rows=tuple((name, value) for name, value in pairs if value != "-"),
        text_columns=frozenset({0, 1}),
        long_columns=frozenset({1}),
    )
