"""Figures of what a search found beside its trials: the Pareto front, and who copied whom."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from planner.objectives import costs_of
from planner.report.contents import Contents
from planner.report.figures import BLUE, VERMILLION, Drawing, new_figure
from planner.report.search_tables import ancestry, copies_table, front_table, written
from planner.report.svg import INK, STYLE, to_svg
from planner.tuning.fronts import Front
from planner.units import format_flops

__all__ = ["lineage", "pareto"]

_WIDE = 8.0
"""Factor between the values of a metric from which its axis is logarithmic."""


def pareto(contents: Contents) -> Drawing | None:
    """Return the front of the first two objectives and its hypervolume over spend, or None."""
    front = contents.summary.front
    if front is None:
        return None
    objectives = contents.results.study.objective[:2]
    rows = [costs_of(objectives, trial) for trial in contents.results.completed()]
    points = [tuple(o.cost(c) for o, c in zip(objectives, row, strict=True)) for row in rows if row]
    with mpl.rc_context(STYLE):
        figure = new_figure(5.6)
        plane, history = figure.subplots(2, 1, height_ratios=(5, 2))
        plane.scatter([y for _, y in points], [x for x, _ in points], s=22, color=INK, alpha=0.4,
                      marker="x", linewidths=1, label="beaten")  # fmt: skip
        plane.plot([v[1] for v in front.values], [v[0] for v in front.values], color=BLUE,
                   linewidth=1.6, marker="o", markersize=6, label="on the front",
                   linestyle="-" if len(front.metrics) == 2 else "none")  # fmt: skip
        _label(plane, front, 1, [y for _, y in points], "x")
        _label(plane, front, 0, [x for x, _ in points], "y")
        plane.legend(loc="best", fontsize=9.5)
        if front.hypervolume:
            history.plot([0.0, *front.spent_device_hours], [0.0, *front.hypervolume], color=BLUE,
                         linewidth=2, drawstyle="steps-post")  # fmt: skip
        history.set_xlim(left=0.0)
        history.set_ylim(0.0, 1.0)
        history.set_xlabel("device-hours spent")
        history.set_ylabel("hypervolume")
        text = _front_text(front)
        return Drawing(
            name="pareto",
            svg=to_svg(figure, "pareto", "Pareto front", text),
            caption=text,
            table=front_table(contents, front),
        )


def _label(axes: Axes, front: Front, index: int, values: list[float], side: str) -> None:
    metric = front.metrics[index]
    is_wide = bool(values) and min(values) > 0 and max(values) > _WIDE * min(values)
    axis = axes.xaxis if side == "x" else axes.yaxis
    if is_wide:
        axes.set_xscale("log") if side == "x" else axes.set_yscale("log")
        axis.set_major_locator(LogLocator(10.0, subs=(1.0, 3.0), numticks=12))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(metric, value)))
    better = "smaller" if front.modes[index] == "min" else "larger"
    axis.set_label_text(f"{metric.replace('_', ' ')} ({better} is better)")


def _front_text(front: Front) -> str:
    text = (
        f"{len(front.trials)} of {front.num_compared} completed trials are on the front: no other "
        f"is as good in all of {', '.join(front.metrics)} and better in one."
    )
    if len(front.metrics) > 2:
        text += " The upper figure shows the first two objectives."
    if front.hypervolume:
        reference = ", ".join(
            written(*pair) for pair in zip(front.metrics, front.reference_point, strict=True)
        )
        text += (
            f" Below, the share of the box from the best values to the reference point "
            f"({reference}) that the trials beat, as the study spent: {front.hypervolume[-1]:.3f} "
            "at the end."
        )
    return text


def lineage(contents: Contents) -> Drawing | None:
    """Return who copied whom at what compute, the best member's line of descent bold, or None."""
    copies = contents.results.copies
    reached = {t.trial: t.train_flops for t in contents.results.trials if t.train_flops}
    if not copies or not reached:
        return None
    lanes = {name: -i for i, name in enumerate(reached)}
    best = contents.results.best()
    descent = [] if best is None else ancestry(copies, best.trial)
    with mpl.rc_context(STYLE):
        figure = new_figure(1.6 + 0.32 * len(lanes))
        axes = figure.subplots()
        for name, end in reached.items():
            axes.plot([0.0, end], [lanes[name]] * 2, color=BLUE, linewidth=1.4, zorder=2)
        for copy in copies:
            if copy.trial in lanes and copy.donor in lanes:
                axes.annotate(
                    "", xy=(copy.train_flops, lanes[copy.trial]),
                    xytext=(copy.train_flops, lanes[copy.donor]),
                    arrowprops={"arrowstyle": "->", "color": INK, "alpha": 0.6, "shrinkA": 0,
                                "shrinkB": 0},
                )  # fmt: skip
        for name, start, until in descent:
            stop = reached[name] if until is None else until
            axes.plot([start, stop], [lanes[name]] * 2, color=VERMILLION, linewidth=3.4, zorder=3,
                      solid_capstyle="butt")  # fmt: skip
        axes.set_yticks(list(lanes.values()), list(lanes))
        axes.set_xlim(left=0.0)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: format_flops(value).removesuffix(" FLOPs"))
        )
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("training compute of a member (FLOPs)")
        text = f"{len(copies)} copies among {len(lanes)} members: an arrow points at who copied."
        if best is not None and len(descent) > 1:
            chain = ", then ".join(name for name, _, _ in descent)
            text += f" The bold line is the training behind {best.trial}, the best: {chain}."
        return Drawing(
            name="lineage",
            svg=to_svg(figure, "lineage", "Who copied whom", text),
            caption=text,
            table=copies_table(contents),
        )
