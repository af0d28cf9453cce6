"""The synthetic run folders of the recommendation's tests, and one with its report written."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.curves import fit
from planner.report import write_report
from planner.results import read_results
from planner.run_folder import RunFolder
from planner.study import Study

_SOURCE = Path(__file__).parents[1] / "recommendation" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("synthetic_runs", _SOURCE)
assert _SPEC is not None
assert _SPEC.loader is not None
synthetic = importlib.util.module_from_spec(_SPEC)
sys.modules["synthetic_runs"] = synthetic
_SPEC.loader.exec_module(synthetic)

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="session")
def study_factory() -> Callable[..., Study]:
    """Return what makes a study."""
    return synthetic.make_study


@pytest.fixture(scope="session")
def run_factory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """Return what writes a run folder for a study, with a law from few bootstraps."""

    def make(study: Study | None = None, *, fitted: bool = True) -> RunFolder:
        folder = synthetic.make_run(tmp_path_factory.mktemp("runs"), study)
        if fitted:
            law = fit(read_results(folder).to_frame(), num_bootstraps=100)
            folder.write("laws.json", law.to_json())
        return folder

    return make


@pytest.fixture(scope="session")
def reported(run_factory: Callable[..., RunFolder]) -> RunFolder:
    """Return a run, of a study with a hostile name, that has its report."""
    folder = run_factory(synthetic.make_study(HOSTILE, question="Is <b>this</b> & 'that' safe?"))
    write_report(folder)
    return folder


@pytest.fixture(scope="session")
def page(reported: RunFolder) -> str:
    """Return its page."""
    return (reported.report / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def unfitted(run_factory: Callable[..., RunFolder]) -> RunFolder:
    """Return the run of a study with two sizes, which no law can be fitted to, with its report."""
    space = synthetic.make_study().search_space.model_dump(mode="json")
    space["parameters"]["model"]["choice"] = space["parameters"]["model"]["choice"][:2]
    folder = run_factory(synthetic.make_study("two-sizes", search_space=space), fitted=False)
    write_report(folder)
    return folder
