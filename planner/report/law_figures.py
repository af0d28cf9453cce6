"""The figures of a fitted law, as PNG files beside laws.json.

The law against its points, its residuals, the IsoFLOP profiles, and the best size with what each
method says of it. Colour is the size (or the budget) on one sequential scale with its legend.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from planner.curves import (
    IsoflopProfile,
    Points,
    ScalingLaw,
    optimal_allocation,
)
from planner.curves.closed_forms import optimal_params
from planner.curves.isoflop import group_values
from planner.errors import FitError
from planner.report.figures import BLUE, GREEN, PURPLE, VERMILLION
from planner.report.svg import BACKGROUND, GRID, INK, STYLE
from planner.units import format_count

__all__ = ["write_law_plots"]

Array = npt.NDArray[np.float64]

_ON_PAPER: Final = {INK: "#1a1a1a", GRID: "#dcdcdc", BACKGROUND: "#ffffff"}
"""A file has no page whose theme it could take."""
_STYLE: Final[dict[Any, Any]] = {
    key: _ON_PAPER.get(value, value) if isinstance(value, str) else value
    for key, value in STYLE.items()
} | {"figure.facecolor": "#ffffff", "savefig.facecolor": "#ffffff", "axes.titlesize": 11.5,
     "axes.titlelocation": "left"}  # fmt: skip
_SIZES: Final = mpl.colormaps["viridis_r"].resampled(256)
_PALEST: Final = 0.12
"""Start of the colour scale: the palest colours do not show on white."""
_DOTS_PER_INCH: Final = 160
_AHEAD: Final = 10.0
"""Curves are drawn so many times beyond the largest compute."""
_MAX_DRAWN: Final = 4_000
_METHODS: Final = {
    "isoflop": (VERMILLION, (0, (1, 1.5)), "IsoFLOP frontier"),
    "envelope": (PURPLE, (2, (4, 2, 1, 2)), "envelope of training curves"),
}
_NUM_CURVES: Final = 7
_NUM_COMPUTES: Final = 41
_MAX_BUDGETS: Final = 9


def write_law_plots(law: ScalingLaw, points: Points, folder: Path) -> list[Path]:
    """Draw a law beside its points, and return the files written.

    Files: `loss.png` and `residuals.png` always; `isoflop.png` where budgets have profiles;
    `best-size.png` where the law says how to split compute.

    Args:
        law: Fitted to these points.
        points: At most a few thousand are drawn, an even sample in compute; the title says so.
        folder: Made if absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _drawn(points)
    drawings: dict[str, Callable[[ScalingLaw, Points], Figure | None]] = {
        "loss": _loss,
        "residuals": _residuals,
        "isoflop": _isoflop,
        "best-size": _best_size,
    }
    written = []
    with mpl.rc_context(_STYLE):
        for name, draw in drawings.items():
            figure = draw(law, drawn)
            path = folder / f"{name}.png"
            if figure is None:
                path.unlink(missing_ok=True)  # of an earlier fit: it would not belong to this law
                continue
            figure.savefig(path, dpi=_DOTS_PER_INCH, metadata={"Software": None})
            written.append(path)
    return written


def _drawn(points: Points) -> Points:
    if len(points) <= _MAX_DRAWN:
        return points
    order = np.argsort(points.compute_flops, kind="stable")
    mask = np.zeros(len(points), dtype=bool)
    mask[order[np.linspace(0, len(points) - 1, _MAX_DRAWN).round().astype(int)]] = True
    return points.where(mask)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    return figure, figure.subplots()


def _num_text(points: Points, law: ScalingLaw) -> str:
    if len(points) < law.num_rows:
        return f"an even {len(points):,} of {law.num_rows:,} trainings"
    return f"{len(points)} trainings"


_STEPS: Final = ((1, 1.5, 2, 3, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))
"""Ticks within a decade, from many to few."""
_NARROW: Final = 6.0
"""A log axis over less than this factor takes evenly spaced numbers."""


def _ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Return round numbers between two, at most so many."""
    if high / low < _NARROW:
        even = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        return [float(v) for v in even if low * 0.999 <= v <= high * 1.001]
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    found: list[float] = []
    for steps in _STEPS:
        found = [s * 10.0**d for d in decades for s in steps]
        found = [v for v in found if low * 0.999 <= v <= high * 1.001]
        if len(found) <= most:
            return found
    return found[:: -(-len(found) // most)]


def _log_axis(axes: Axes, which: str, label: str, text: Callable[[float], str]) -> None:
    """Give an axis logs, round ticks in plain words and a label with its unit."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    if which == "x":
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_xlabel(label)
    else:
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.set_ylabel(label)
    axis.set_major_locator(FixedLocator(_ticks(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _flops_text(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _loss_text(value: float) -> str:
    return f"{value:.4g}"


def _scale(values: Array) -> LogNorm:
    low, high = float(values.min()), float(values.max())
    return LogNorm(low / 1.001, high * 1.001)


def _colour(norm: LogNorm, values: Array | float) -> Any:
    return _SIZES(_PALEST + (1 - _PALEST) * np.asarray(norm(values)))


def _colour_bar(figure: Figure, axes: Axes, norm: LogNorm, label: str) -> None:
    shades = mpl.colors.ListedColormap(_SIZES(np.linspace(_PALEST, 1.0, 256)))
    bar = figure.colorbar(ScalarMappable(norm=norm, cmap=shades), ax=axes, pad=0.015, aspect=32)
    ticks = _ticks(float(norm.vmin or 1.0), float(norm.vmax or 1.0), most=6)
    bar.set_ticks(ticks, labels=[format_count(v) for v in ticks])
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label(label)


def _predicted(law: ScalingLaw, points: Points) -> Array:
    given = points.covariates()
    rest = {name: given[name] for name in law.variables if name not in ("num_params", "num_tokens")}
    return law.predict(
        points.num_params, points.num_tokens, level=None, train_flops=None, **rest
    ).loss


def _scatter(axes: Axes, x: Array, y: Array, points: Points, norm: LogNorm) -> None:
    axes.scatter(
        x, y, s=26 if len(points) < 400 else 9, c=_colour(norm, points.num_params),
        edgecolors="#1a1a1a" if len(points) < 400 else "none", linewidths=0.4, zorder=3,
    )  # fmt: skip


def _loss(law: ScalingLaw, points: Points) -> Figure:
    """Loss against compute: the law at several sizes, and its best with the interval."""
    if not law.needs_only_size_and_tokens:
        return _measured_against_fitted(law, points)
    figure, axes = _figure()
    norm = _scale(points.num_params)
    flops = points.compute_flops
    low, high = float(points.loss.min()), float(points.loss.max())
    per_token = float(np.median(flops / (points.num_params * points.num_tokens)))
    _draw_sizes(axes, law, points, norm, per_token)
    least = _draw_best(axes, law, flops, _AHEAD * float(flops.max()))
    _scatter(axes, flops, points.loss, points, norm)
    last = float(flops.max()) * (3.0 if least is None else 1.1 * _AHEAD)
    axes.set_xlim(float(flops.min()) / 1.5, last)
    axes.set_ylim(min(low, least or low) * 0.97, high * 1.03)
    _log_axis(axes, "x", f"training compute (FLOPs, {law.flops_convention})", _flops_text)
    _log_axis(axes, "y", "loss (nats per token)", _loss_text)
    _colour_bar(figure, axes, norm, "parameters")
    best = "" if least is None else ", and at the best one"
    axes.set_title(f"The law at several sizes{best}: {_num_text(points, law)}")
    if least is not None:
        axes.legend(loc="upper right", fontsize=9.5)
    return figure


def _measured_against_fitted(law: ScalingLaw, points: Points) -> Figure:
    """Measured against fitted loss, for a form of more than size and tokens."""
    figure, axes = _figure()
    norm = _scale(points.num_params)
    fitted = _predicted(law, points)
    ends = np.array([min(fitted.min(), points.loss.min()), max(fitted.max(), points.loss.max())])
    ends = ends * np.array([0.98, 1.02])
    axes.plot(ends, ends, color="#1a1a1a", linewidth=1.0, zorder=2)
    _scatter(axes, fitted, points.loss, points, norm)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    _log_axis(axes, "x", "fitted loss (nats per token)", _loss_text)
    _log_axis(axes, "y", "measured loss (nats per token)", _loss_text)
    _colour_bar(figure, axes, norm, "parameters")
    axes.set_title(f"Measured against fitted loss ({law.form}): {_num_text(points, law)}")
    return figure


def _draw_sizes(
    axes: Axes, law: ScalingLaw, points: Points, norm: LogNorm, per_token: float
) -> None:
    """Draw the law along a few of the sizes, over the tokens that they were trained for."""
    distinct = np.unique(points.num_params)
    wanted = np.geomspace(distinct[0], distinct[-1], _NUM_CURVES)
    chosen = np.unique(np.abs(np.log(distinct[:, None] / wanted)).argmin(axis=0))
    for size in distinct[chosen]:
        near = np.abs(np.log(points.num_params / size)) < 0.35
        tokens = np.geomspace(
            points.num_tokens[near].min() / 1.3, points.num_tokens[near].max() * 2, 60
        )
        axes.plot(per_token * size * tokens, law.predict(size, tokens).loss,
                  color=_colour(norm, float(size)), linewidth=1.3, alpha=0.9, zorder=2)  # fmt: skip


def _draw_best(axes: Axes, law: ScalingLaw, flops: Array, last: float) -> float | None:
    """Draw the loss of the best size with its prediction interval; return the least loss drawn.

    None where the form has no best size: its points and curves stand alone.
    """
    compute = np.geomspace(float(flops.min()), last, _NUM_COMPUTES)
    try:
        best = [optimal_allocation(law, float(c)) for c in compute]
    except FitError:
        return None
    loss, lower, upper = (
        np.array([getattr(a, name) for a in best]) for name in ("loss", "loss_lower", "loss_upper")
    )
    inside = compute <= float(flops.max()) * 1.001
    axes.fill_between(compute, lower, upper, color=BLUE, alpha=0.15, linewidth=0, zorder=1,
                      label=f"{law.level:.0%} prediction interval")  # fmt: skip
    axes.plot(compute[inside], loss[inside], color=BLUE, linewidth=2.2, zorder=4, label="best size")
    beyond = ~inside | (compute == compute[inside][-1])
    axes.plot(compute[beyond], loss[beyond], color=BLUE, linewidth=2.2, zorder=4,
              linestyle=(0, (4, 2)), label="beyond the data")  # fmt: skip
    return float(lower.min())


def _residuals(law: ScalingLaw, points: Points) -> Figure:
    """Measured over fitted loss against compute, beside the noise that the law states."""
    figure, axes = _figure()
    norm = _scale(points.num_params)
    off = 100.0 * (points.loss / _predicted(law, points) - 1.0)
    noise = 100.0 * law.noise
    axes.axhspan(-2 * noise, 2 * noise, color=BLUE, alpha=0.10, linewidth=0, zorder=1,
                 label=f"two standard deviations of the noise, {2 * noise:.2g} %")  # fmt: skip
    axes.axhline(0.0, color="#1a1a1a", linewidth=1.0, zorder=2)
    _scatter(axes, points.compute_flops, off, points, norm)
    axes.set_xlim(points.compute_flops.min() / 1.5, points.compute_flops.max() * 1.5)
    reach = 1.15 * max(float(np.abs(off).max()), 2.5 * noise)
    axes.set_ylim(-reach, reach)
    axes.set_ylabel("measured over fitted loss, less one (%)")
    _log_axis(axes, "x", f"training compute (FLOPs, {law.flops_convention})", _flops_text)
    _colour_bar(figure, axes, norm, "parameters")
    axes.set_title(f"Residuals of {_num_text(points, law)}")
    axes.legend(loc="lower left", fontsize=9.5)
    return figure


def _isoflop(law: ScalingLaw, points: Points) -> Figure | None:
    """Loss against size at each budget, its parabola and its best size."""
    if not law.profiles or not law.needs_only_size_and_tokens:
        return None
    figure, axes = _figure()
    every = max(1, -(-len(law.profiles) // _MAX_BUDGETS))
    profiles = law.profiles[::-1][::every][::-1]
    budgets = np.array([p.train_flops for p in profiles])
    norm = _scale(budgets)
    groups = group_values(points.compute_flops)
    centers = np.array(
        [np.median(points.compute_flops[groups == g]) for g in range(int(groups.max()) + 1)]
    )
    for profile in profiles:
        rows = groups == int(np.abs(np.log(centers / profile.train_flops)).argmin())
        _draw_profile(axes, profile, points.where(rows), _colour(norm, profile.train_flops))
    _log_axis(axes, "x", "parameters", format_count)
    axes.set_ylabel("loss (nats per token)")
    shown = "" if every == 1 else f", {len(profiles)} of {len(law.profiles)} budgets"
    axes.set_title(f"Loss against size at each budget{shown}")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize=9.5,
                  title="training FLOPs")  # fmt: skip
    return figure


def _draw_profile(axes: Axes, profile: IsoflopProfile, rows: Points, colour: Any) -> None:
    axes.set_xscale("log")
    axes.scatter(rows.num_params, rows.loss, s=26, color=colour, edgecolors="#1a1a1a",
                 linewidths=0.4, zorder=3)  # fmt: skip
    label = _flops_text(profile.train_flops)
    best, loss = profile.best_num_params, profile.best_loss
    if best is None or loss is None:
        axes.plot([], [], color=colour, linewidth=1.6, label=f"{label} (refused)")
        return
    near = np.array([max(rows.num_params.min(), best / 8), min(rows.num_params.max(), best * 8)])
    sizes = np.geomspace(near[0], max(near[1], near[0] * 1.01), 60)
    is_used = profile.refusal is None
    axes.plot(sizes, loss + profile.curvature * np.log(sizes / best) ** 2, color=colour,
              linewidth=1.6, linestyle="-" if is_used else (0, (2, 2)), zorder=2,
              label=label if is_used else f"{label} (refused)")  # fmt: skip
    if is_used:
        axes.scatter([best], [loss], s=110, marker="*", color=VERMILLION, edgecolors="#1a1a1a",
                     linewidths=0.6, zorder=4)  # fmt: skip


def _best_size(law: ScalingLaw, points: Points) -> Figure | None:
    """Best size against compute: each method alone, and what is recommended."""
    flops = points.compute_flops
    compute = np.geomspace(float(flops.min()), _AHEAD * float(flops.max()), _NUM_COMPUTES)
    if not law.needs_only_size_and_tokens:
        return None
    try:
        chosen = [optimal_allocation(law, float(c)) for c in compute]
    except FitError:  # this form does not say how to split compute
        return None
    figure, axes = _figure()
    size, lower, upper = (
        np.array([getattr(a, name) for a in chosen])
        for name in ("num_params", "num_params_lower", "num_params_upper")
    )
    axes.scatter(flops, points.num_params, s=12, color="#9a9a9a", linewidths=0, zorder=1,
                 label="trainings")  # fmt: skip
    axes.fill_between(compute, lower, upper, color=BLUE, alpha=0.15, linewidth=0, zorder=1,
                      label=f"{law.level:.0%} interval")  # fmt: skip
    axes.plot(compute, size, color=BLUE, linewidth=2.4, zorder=4, label="recommended size")
    if law.frontiers:
        lead = law.components[0]
        surface = [float(optimal_params(lead.params[None], float(c))[0]) for c in compute]
        axes.plot(compute, surface, color=GREEN, linewidth=1.4, linestyle=(0, (5, 2)), zorder=3,
                  label=f"surface alone ({lead.form})")  # fmt: skip
    for method, frontier in law.frontiers.items():
        alone = [float(np.exp(frontier.log_best_params(float(c))[0])) for c in compute]
        colour, dashes, name = _METHODS[method]
        axes.plot(compute, alone, color=colour, linewidth=1.4, linestyle=dashes, zorder=4,
                  label=f"{name} alone")  # fmt: skip
    _draw_vertices(axes, law)
    axes.axvline(float(flops.max()), color="#1a1a1a", linewidth=0.9, linestyle=(0, (1, 2)))
    axes.set_xlim(compute[0] / 1.5, compute[-1] * 1.1)
    axes.set_ylim(
        min(lower.min(), points.num_params.min()) / 1.3,
        max(upper.max(), points.num_params.max()) * 1.3,
    )
    _log_axis(axes, "x", f"training compute (FLOPs, {law.flops_convention})", _flops_text)
    _log_axis(axes, "y", "parameters", format_count)
    axes.set_title("Best size at each compute; the data end at the dotted line")
    axes.legend(loc="upper left", fontsize=9.5)
    return figure


def _draw_vertices(axes: Axes, law: ScalingLaw) -> None:
    used = [p for p in law.profiles if p.refusal is None and p.best_num_params is not None]
    if used:
        axes.scatter([p.train_flops for p in used], [p.best_num_params or 0.0 for p in used], s=90,
                     marker="*", color=VERMILLION, edgecolors="#1a1a1a", linewidths=0.6, zorder=5,
                     label="best size of a budget")  # fmt: skip
