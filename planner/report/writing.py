"""`write_report`: the page for people and the files for programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

from planner.report.contents import Contents, gather
from planner.report.page import SCHEMA, page_html, page_markdown
from planner.run_folder import RunFolder

__all__ = ["report_data", "write_report"]


def write_report(run: RunFolder | str) -> Path:
    """Write the report of a run into its `report/` folder, and return the page's path.

    Files: `index.html`, `report.md`, `report.json`, `results.csv`, `results.parquet`. A law or a
    recommendation that was not computed yet is computed; where the trials cannot support one, the
    report says why and shows everything else. The same run gives the same bytes.

    Raises:
        NotFoundError: There is no such run, or its sweep has not written results.
        ConfigError: The folder cannot be written, or a file of the run is damaged.
    """
    folder = RunFolder.open(run) if isinstance(run, str) else run
    contents = gather(folder)
    frame = contents.results.to_frame()
    parquet = BytesIO()
    frame.to_parquet(parquet, index=False)
    folder.write("report/results.parquet", parquet.getvalue())
    folder.write("report/results.csv", frame.to_csv(index=False, lineterminator="\n"))
    document = json.dumps(report_data(contents), indent=1, allow_nan=False) + "\n"
    folder.write("report/report.json", document)
    folder.write("report/report.md", page_markdown(contents))
    return folder.write("report/index.html", page_html(contents))


def report_data(contents: Contents) -> dict[str, Any]:
    """Return the report as plain data; the content of `report.json`."""
    results, law, answer = contents.results, contents.law, contents.recommendation
    losses = contents.losses
    return {
        "schema": SCHEMA,
        "run": contents.folder.name,
        "study": results.study.model_dump(mode="json"),
        "study_digest": results.study.digest,
        "spent": {
            **{name: getattr(results.spend, name) for name in results.spend.__slots__},
            "device_hours_by_outcome": contents.spent_device_hours,
        },
        "best_loss": None if losses is None else losses.best,
        "unigram_entropy": None if losses is None else losses.unigram_entropy,
        "recommendation": None if answer is None else json.loads(answer.to_json()),
        "obstacle": contents.obstacle,
        "law": None if law is None else _law_data(law.to_json()),
        "search": contents.summary.to_data(),
        "copies": [asdict(copy) for copy in results.copies],
        "trials": [_row(row) for row in results.to_frame().astype(object).to_dict("records")],
    }


def _law_data(text: str) -> dict[str, Any]:
    """Return the law without the draws behind its intervals, which are in laws.json."""
    law: dict[str, Any] = json.loads(text)
    for component in law["components"]:
        component.pop("draws")
    return law


def _row(row: dict[Any, Any]) -> dict[str, Any]:
    values = {str(name): _value(value) for name, value in row.items()}
    return values | {name: json.loads(values[name]) for name in ("config", "metrics", "point")}


def _value(value: Any) -> Any:
    """Return a cell as JSON holds it; absent and not finite become null."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | bool | int) else None
