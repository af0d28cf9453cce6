"""The figures of a report, drawn with matplotlib's Figure (no pyplot, no backend).

Colours are the four of Okabe and Ito that reach 3:1 on white and on dark; marker shape and direct
labels say the same, so that colour is never the only difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from planner.report.contents import Contents
from planner.report.frontier import Frontier, frontier
from planner.report.svg import BACKGROUND, INK, STYLE, to_svg
from planner.report.tables import Table
from planner.trial import TrialResult, TrialState
from planner.units import format_count, format_flops

__all__ = [
    "BLUE",
    "VERMILLION",
    "Drawing",
    "burn_down",
    "learning_curves",
    "loss_against_compute",
    "new_figure",
]

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_CLASSES: Final = [
    (colour, marker, filled)
    for filled in (True, False)
    for colour, marker in ((BLUE, "o"), (VERMILLION, "s"), (GREEN, "^"), (PURPLE, "D"))
]
_WIDTH_INCHES: Final = 5.6
_MAX_CURVES: Final = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """One figure of the page."""

    name: str
    svg: str
    caption: str
    table: Table | None = None
    """What the figure shows, in numbers."""


def new_figure(height_inches: float) -> Figure:
    """Return an empty figure of the page's width."""
    return Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")


def _log_flops(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("training compute (FLOPs)")
    axes.xaxis.set_major_locator(LogLocator(10.0, numticks=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{np.log10(value):.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _size_classes(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return at most eight (least, largest) classes that hold all sizes."""
    distinct = sorted(set(sizes))
    groups = np.array_split(np.array(distinct), max(1, min(len(distinct), len(_CLASSES))))
    return [(int(group[0]), int(group[-1])) for group in groups if len(group)]


def loss_against_compute(contents: Contents) -> Drawing | None:
    """Return the trials with the fitted envelope, its band and the recommended point, or None."""
    trials = [
        trial
        for trial in contents.with_state(TrialState.COMPLETED, TrialState.STOPPED)
        if trial.val_loss and trial.train_flops and trial.num_params
    ]
    if not trials:
        return None
    edge = frontier(contents)
    with mpl.rc_context(STYLE):
        figure = new_figure(4.6)
        axes = figure.subplots()
        _log_flops(axes)
        axes.set_ylabel("validation loss (nats per token)")
        _draw_trials(axes, trials)
        if edge is not None:
            _draw_frontier(axes, edge, max(trial.train_flops or 0.0 for trial in trials))
        _draw_choice(axes, contents)
        _limit_to_what_matters(axes, contents, trials, edge)
        _draw_entropy(axes, contents)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9.5,
                      handletextpad=0.4, columnspacing=1.2)  # fmt: skip
        text = _compute_text(contents, len(trials))
        return Drawing(
            name="compute",
            svg=to_svg(figure, "compute", "Validation loss against training compute", text),
            caption=text,
        )


def _draw_trials(axes: Axes, trials: Sequence[TrialResult]) -> None:
    completed = [trial for trial in trials if trial.state is TrialState.COMPLETED]
    stopped = [trial for trial in trials if trial.state is TrialState.STOPPED]
    classes = _size_classes([trial.num_params or 0 for trial in completed])
    for (low, high), (colour, marker, filled) in zip(classes, _CLASSES, strict=False):
        inside = [t for t in completed if low <= (t.num_params or 0) <= high]
        name = format_count(low) if low == high else f"{format_count(low)} to {format_count(high)}"
        axes.scatter(
            *_xy(inside), s=42, marker=marker, facecolors=colour if filled else BACKGROUND,
            edgecolors=INK if filled else colour, linewidths=0.6 if filled else 1.6,
            label=f"{name} params", zorder=3,
        )  # fmt: skip
    if stopped:
        axes.scatter(*_xy(stopped), s=22, marker="x", color=INK, alpha=0.45, linewidths=1,
                     label="stopped early", zorder=2)  # fmt: skip


def _xy(trials: Sequence[TrialResult]) -> tuple[list[float], list[float]]:
    return [t.train_flops or 0.0 for t in trials], [t.val_loss or 0.0 for t in trials]


def _draw_frontier(axes: Axes, edge: Frontier, most_flops: float) -> None:
    inside = edge.train_flops <= most_flops
    outside = edge.train_flops >= edge.train_flops[inside][-1] if inside.any() else ~inside
    axes.fill_between(
        edge.train_flops, edge.loss_lower, edge.loss_upper, color=BLUE, alpha=0.16, linewidth=0,
        label=f"{edge.level:.0%} prediction interval",
    )  # fmt: skip
    axes.plot(edge.train_flops[inside], edge.loss[inside], color=BLUE, linewidth=1.8,
              label="fitted envelope")  # fmt: skip
    axes.plot(edge.train_flops[outside], edge.loss[outside], color=BLUE, linewidth=1.8,
              linestyle=(0, (4, 3)), label="beyond the data")  # fmt: skip


def _draw_choice(axes: Axes, contents: Contents) -> None:
    answer = contents.recommendation
    if answer is None:
        return
    row = answer.choice
    axes.axvline(row.train_flops, color=VERMILLION, linewidth=1.2, linestyle=(0, (1, 2)))
    axes.annotate(
        "budget", (row.train_flops, 1.0), xycoords=("data", "axes fraction"), xytext=(-4, -2),
        textcoords="offset points", rotation=90, ha="right", va="top", fontsize=9.5,
    )  # fmt: skip
    axes.errorbar(
        row.train_flops, row.predicted_loss,
        yerr=[[row.predicted_loss - row.loss_lower], [row.loss_upper - row.predicted_loss]],
        marker="*", markersize=14, color=VERMILLION, markeredgecolor=INK, markeredgewidth=0.6,
        capsize=4, linewidth=1.6, linestyle="none", label="recommended", zorder=4,
    )  # fmt: skip


def _limit_to_what_matters(
    axes: Axes, contents: Contents, trials: Sequence[TrialResult], edge: Frontier | None
) -> None:
    """Keep the trials readable beside an interval that may be many times as wide as they spread."""
    values = _xy(trials)[1] + ([] if edge is None else edge.loss.tolist())
    answer = contents.recommendation
    spread = max(max(values) - min(values), 0.05 * max(values))
    low, high = min(values) - 0.1 * spread, max(values) + 0.1 * spread
    if answer is not None:
        low = min(low, max(answer.choice.loss_lower, low - 0.6 * spread) - 0.03 * spread)
        high = max(high, min(answer.choice.loss_upper, high + 0.3 * spread) + 0.03 * spread)
    axes.set_ylim(low, high)


def _draw_entropy(axes: Axes, contents: Contents) -> None:
    losses = contents.losses
    if losses is None or losses.unigram_entropy is None:
        return
    low, high = axes.get_ylim()
    if losses.unigram_entropy <= high + 0.25 * (high - low):
        axes.axhline(losses.unigram_entropy, color=INK, alpha=0.6, linewidth=1,
                     linestyle=(0, (6, 2, 1, 2)), label="unigram entropy")  # fmt: skip


def _compute_text(contents: Contents, num_trials: int) -> str:
    text = (
        f"Validation loss of {num_trials} trials against their training compute; colour and shape "
        "stand for the model's size."
    )
    if contents.law is not None:
        text += (
            " The line is the least loss that the fitted law expects of any shape at each compute,"
            " solid inside the data and dashed beyond; the band is its prediction interval."
        )
    answer = contents.recommendation
    if answer is not None:
        text += (
            f" The star is the recommended training: {answer.choice.predicted_loss:.3f} at "
            f"{format_flops(answer.choice.train_flops)}."
        )
    return text


def learning_curves(contents: Contents) -> Drawing | None:
    """Return validation loss along each trial, the best bold and the stopped faint, or None."""
    best = contents.results.best()
    curves = _curves(contents, best)
    if not curves:
        return None
    with mpl.rc_context(STYLE):
        figure = new_figure(4.0)
        axes = figure.subplots()
        _log_flops(axes)
        axes.set_ylabel("validation loss (nats per token)")
        named: set[str] = set()
        for trial, flops, losses in curves:
            is_best = best is not None and trial.trial == best.trial
            label, style = _curve_style(trial, is_best)
            axes.plot(flops, losses, label=None if label in named else label, **style)
            named.add(label)
        _limit_losses(axes, [losses for _, _, losses in curves])
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9.5)
        total = sum(1 for trial in contents.results.trials if trial.val_loss is not None)
        text = f"Validation loss along {len(curves)} of {total} trials"
        if best is not None and best.val_loss is not None:
            text += f"; the bold line is {best.trial}, the best, ending at {best.val_loss:.3f}"
        text += "."
        return Drawing(
            name="curves", svg=to_svg(figure, "curves", "Learning curves", text), caption=text
        )


def _curves(
    contents: Contents, best: TrialResult | None
) -> list[tuple[TrialResult, list[float], list[float]]]:
    """Return (trial, FLOPs, losses) of the trials with two reports or more, the best one last."""
    points: dict[str, list[tuple[float, float]]] = {}
    for point in contents.results.curves:
        if point.train_flops and point.val_loss is not None and np.isfinite(point.val_loss):
            points.setdefault(point.trial, []).append((point.train_flops, point.val_loss))
    found: list[tuple[TrialResult, list[float], list[float]]] = []
    for trial in contents.results.trials:
        reports = sorted(points.get(trial.trial, ()))
        if len(reports) > 1:
            found.append((trial, [x for x, _ in reports], [y for _, y in reports]))
    found.sort(key=lambda curve: curve[0].val_loss or np.inf, reverse=True)
    if best is not None:
        found.sort(key=lambda curve: curve[0].trial == best.trial)
    return found[-_MAX_CURVES:]


def _curve_style(trial: TrialResult, is_best: bool) -> tuple[str, dict[str, Any]]:
    if is_best:
        return "best", {"color": VERMILLION, "linewidth": 2.8, "zorder": 4}
    if trial.state is TrialState.COMPLETED:
        return "completed", {"color": BLUE, "linewidth": 1.1, "alpha": 0.85, "zorder": 3}
    if trial.state is TrialState.STOPPED:
        return "stopped early", {
            "color": INK, "linewidth": 0.9, "alpha": 0.4, "linestyle": (0, (3, 2)),
        }  # fmt: skip
    return "diverged or failed", {
        "color": PURPLE, "linewidth": 1.1, "linestyle": (0, (1, 1.5)), "zorder": 2,
    }  # fmt: skip


def _limit_losses(axes: Axes, losses: Sequence[Sequence[float]]) -> None:
    """Keep the ends of the curves readable where a few start or diverge far above them."""
    values: npt.NDArray[np.float64] = np.concatenate([np.asarray(c, float) for c in losses])
    low, high = float(values.min()), float(np.quantile(values, 0.98))
    margin = 0.05 * max(high - low, 1e-3)
    axes.set_ylim(low - margin, high + margin)


def burn_down(contents: Contents) -> Drawing | None:
    """Return what the study spent over time and what on, or None if that is not known."""
    series = [
        (point.study_seconds / 3600.0, point.spent_device_hours)
        for point in contents.results.curves
        if point.study_seconds is not None and point.spent_device_hours is not None
    ]
    if not series:
        return None
    shares = contents.spent_device_hours
    total = sum(shares.values())
    with mpl.rc_context(STYLE):
        figure = new_figure(4.0)
        line, bar = figure.subplots(2, 1, height_ratios=(3, 1))
        hours, spent = (list(column) for column in zip(*sorted(series), strict=True))
        line.plot([0.0, *hours], [0.0, *spent], color=BLUE, linewidth=2, drawstyle="steps-post")
        line.set_xlim(left=0.0)
        line.set_xlabel("wall clock of the study (hours)")
        line.set_ylabel("device-hours spent")
        _draw_limit(line, contents, total)
        _draw_shares(bar, shares)
        text = (
            f"Spent {total:.3g} device-hours: "
            + ", ".join(f"{value:.3g} {_SHARE_TEXT[name]}" for name, value in shares.items())
            + "."
        )
        return Drawing(
            name="spent", svg=to_svg(figure, "spent", "Budget burn-down", text), caption=text
        )


_SHARE_TEXT: Final = {
    "completed": "on completed trials",
    "stopped": "on trials stopped early",
    "lost": "lost to failures",
}


def _draw_limit(axes: Axes, contents: Contents, total: float) -> None:
    limit = contents.results.study.budget.device_hours
    axes.set_ylim(0.0, 1.15 * max(total, limit or 0.0))
    if limit is not None:
        axes.axhline(limit, color=VERMILLION, linewidth=1.4, linestyle=(0, (4, 3)))
        axes.annotate(
            f"budget {limit:.3g}", (1.0, limit), xycoords=("axes fraction", "data"),
            xytext=(0, 3), textcoords="offset points", ha="right", va="bottom", fontsize=10,
        )  # fmt: skip


def _draw_shares(axes: Axes, shares: dict[str, float]) -> None:
    axes.grid(visible=False)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    looks = {"completed": (BLUE, ""), "stopped": (GREEN, "//"), "lost": (VERMILLION, "xx")}
    left = 0.0
    for name, value in shares.items():
        colour, hatch = looks[name]
        axes.barh(0, value, left=left, color=colour, hatch=hatch, edgecolor=BACKGROUND,
                  linewidth=0.8, label=f"{name} {value:.3g}")  # fmt: skip
        left += value
    axes.set_xlim(0.0, max(left, 1e-9))
    axes.set_xlabel("device-hours by what became of them")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9.5)
