"""A matplotlib figure to inline SVG: themed by CSS, accessible, and the same bytes every time."""

from __future__ import annotations

import re
from html import escape
from io import StringIO
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["BACKGROUND", "GRID", "INK", "STYLE", "to_svg"]

INK: Final = "#010203"
GRID: Final = "#040506"
BACKGROUND: Final = "#070809"
_VARIABLES: Final = {INK: "var(--ink)", GRID: "var(--grid)", BACKGROUND: "var(--paper)"}
"""Colours that stand for the page's; replaced in the SVG, so that dark mode reaches it."""

STYLE: Final[dict[Any, Any]] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11.0,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "xtick.labelsize": 10.0,
    "ytick.color": INK,
    "ytick.labelsize": 10.0,
}


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """Return a figure as an `<svg>` element for an HTML page.

    Args:
        figure: Drawn under `STYLE`.
        name: Prefix of every id, unique in the page.
        title: What is shown, in a few words.
        description: What it says, for whoever cannot see it.
    """
    buffer = StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'\b(id)="', rf'\1="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    head, body = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    box = view[0] if view else ""
    return (
        f'<svg {box} role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>{body.strip()}'
    )
