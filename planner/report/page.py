"""The page and its Markdown sibling, rendered by Jinja2 from the tables, figures and sentences."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from planner.report import tables
from planner.report.contents import Contents
from planner.report.figures import Drawing, burn_down, learning_curves, loss_against_compute
from planner.report.search_figures import lineage, pareto
from planner.report.search_tables import copies_table, front_table, importances_table
from planner.report.summary import commands, decision, losses_text, method, overview

__all__ = ["SCHEMA", "page_html", "page_markdown"]

SCHEMA: Final = "planner.report/1"
_TEMPLATES: Final = Path(__file__).with_name("templates")
_FIGURES: Final = (
    ("Loss against compute", loss_against_compute),
    ("Pareto front", pareto),
    ("Learning curves", learning_curves),
    ("Who copied whom", lineage),
    ("Budget burn-down", burn_down),
)


@cache
def _environment(escaped: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
    )
    environment.filters["line"] = _markdown_line
    environment.filters["cell"] = _markdown_cell
    return environment


def _markdown_line(value: object) -> str:
    """Return text on one line that Markdown does not read as HTML."""
    return " ".join(str(value).split()).replace("<", "&lt;").replace(">", "&gt;")


def _markdown_cell(value: object) -> str:
    return _markdown_line(value).replace("|", "\\|")


def page_html(contents: Contents) -> str:
    """Return the page: self-contained, without scripts."""
    drawings = [
        (heading, f"figure-{drawing.name}", _with_markup(drawing))
        for heading, draw in _FIGURES
        if (drawing := draw(contents)) is not None
    ]
    style = Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8"))
    template = _environment(True).get_template("page.html.j2")
    return template.render(drawings=drawings, style=style, **_values(contents))


def page_markdown(contents: Contents) -> str:
    """Return the same in Markdown, without figures: at most 15 rows a table."""
    return _environment(False).get_template("page.md.j2").render(**_values(contents))


def _with_markup(drawing: Drawing) -> dict[str, object]:
    """Return a drawing whose SVG, which is ours and escaped, is not escaped again."""
    return {"svg": Markup(drawing.svg), "caption": drawing.caption, "table": drawing.table}


def _values(contents: Contents) -> dict[str, Any]:
    answer, law, front = contents.recommendation, contents.law, contents.summary.front
    warnings = () if answer is None else answer.warnings
    return {
        "schema": SCHEMA,
        "run": contents.folder.name,
        "study": contents.results.study,
        "overview": overview(contents),
        "answer": None if answer is None else str(answer),
        "obstacle": contents.obstacle,
        "losses": losses_text(contents),
        "decision": [] if answer is None else list(decision(answer, contents)),
        "warnings": [w for w in warnings if not w.code.startswith("law:")],
        "fit_warnings": [] if law is None else law.warnings,
        "runners_up": None if answer is None else tables.runners_up(answer),
        "settings": None if answer is None else tables.settings(answer),
        "front": None if front is None else front_table(contents, front),
        "copies": copies_table(contents),
        "importances": importances_table(contents),
        "gain": contents.summary.gain,
        "trials": tables.trials(contents),
        "unfinished": tables.unfinished(contents),
        "coefficients": tables.coefficients(contents),
        "best_sizes": tables.best_sizes_table(contents),
        "checklist": {} if law is None else law.checklist,
        "method": list(method(contents)),
        "commands": commands(contents),
    }
