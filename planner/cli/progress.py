"""Live progress of a sweep: a panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import click

from planner.units import format_flops, format_number, format_seconds

if TYPE_CHECKING:
    from planner.trial import TrialResult
    from planner.tuning.outcome import Progress

__all__ = ["ProgressPrinter"]

_LINE_SECONDS: Final = 60.0
"""Longest silence where lines are printed."""
_REFRESHES_PER_SECOND: Final = 4


class ProgressPrinter:
    """Shows where a sweep stands on stderr; use it as a context manager.

    Args:
        quiet: Whether to show nothing.
        is_terminal: Whether to draw; by default whether stderr is a terminal.
    """

    def __init__(self, *, quiet: bool = False, is_terminal: bool | None = None) -> None:
        self._quiet = quiet
        self._is_terminal = sys.stderr.isatty() if is_terminal is None else is_terminal
        self._live: Any = None
        self._printed = time.monotonic()
        self._notes: list[str] = []

    def __enter__(self) -> Self:
        if self._is_terminal and not self._quiet:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(stderr=True), refresh_per_second=_REFRESHES_PER_SECOND
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show a sweep's progress; called after every line of its ledger."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.update(_panel(progress))
            return
        is_news = progress.event in ("ended", "lost", "budget_spent", "gave_up", "note")
        is_due = time.monotonic() - self._printed >= _LINE_SECONDS
        if not is_news and not is_due:
            return
        self._printed = time.monotonic()
        text = _trial_text(progress) if is_news and progress.last else None
        click.echo(" | ".join(part for part in (text, summary(progress)) if part), err=True)


def summary(progress: Progress) -> str:
    """Return the sweep's state in one line."""
    wanted = f" of {progress.num_wanted}" if progress.num_wanted else ""
    counts = ", ".join(f"{n} {state}" for state, n in sorted(progress.counts.items()))
    parts = [f"trials{wanted}: {counts or 'none yet'}", _best_text(progress), _budget(progress)]
    if progress.seconds_left:
        parts.append(f"about {format_seconds(progress.seconds_left)} left")
    return " | ".join(part for part in parts if part)


def _trial_text(progress: Progress) -> str | None:
    trial = progress.last
    if trial is None:
        return None
    loss = _value(progress, trial)
    reason = f" ({trial.reason})" if trial.reason else ""
    if progress.event == "lost":
        return f"{trial.trial} lost its workers and will be tried again"
    return f"{trial.trial} {trial.state}{reason}{f' {loss}' if loss else ''}"


def _value(progress: Progress, trial: TrialResult) -> str:
    metric = progress.study.first_objective.metric
    value = getattr(trial, metric)
    return "" if value is None else f"{metric} {format_number(value, 4)}"


def _best_text(progress: Progress) -> str:
    best = progress.best
    return "" if best is None else f"best {best.trial}: {_value(progress, best)}"


def _budget(progress: Progress) -> str:
    from planner.budget import format_amount

    limits = progress.budget.limits()
    shares = [
        f"{getattr(progress.spend, name) / limit:.0%} of {format_amount(name, limit)}"
        for name, limit in limits.items()
    ]
    return "spent " + ", ".join(shares)


def _panel(progress: Progress) -> Any:
    """Return what the terminal shows: counts, budget bars, the running trials."""
    from rich import box
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from planner.budget import format_amount

    bars = Table.grid(padding=(0, 1))
    for name, limit in progress.budget.limits().items():
        spent = getattr(progress.spend, name)
        bars.add_row(
            Text("budget"),
            ProgressBar(total=limit, completed=min(spent, limit), width=30),
            Text(f"{format_amount(name, spent)} of {format_amount(name, limit)}"),
        )
    running = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("running", "workers", "FLOPs", progress.study.first_objective.metric, "time"):
        running.add_column(heading, justify="left" if heading == "running" else "right")
    for trial in progress.running:
        value = getattr(trial, progress.study.first_objective.metric)
        running.add_row(
            trial.trial,
            str(trial.num_workers),
            format_flops(trial.train_flops or 0.0).removesuffix(" FLOPs"),
            "-" if value is None else format_number(value, 4),
            format_seconds(trial.elapsed_seconds or 0.0),
        )
    title = Text(progress.study.name)
    return Panel(Group(Text(summary(progress)), bars, running), title=title, title_align="left")
