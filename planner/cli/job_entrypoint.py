"""The entrypoint of a submitted study, run on the cluster: `python -m planner.cli.job_entrypoint`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from planner.cli import main
from planner.errors import NotFoundError
from planner.jobs import leave_bundle
from planner.run_folder import RunFolder


def run(arguments: Sequence[str]) -> int:
    """Sweep a submitted study, leave its results for fetching, return the sweep's exit code.

    Args:
        arguments: Path of the study, name of the run, submission id, and folder of runs (by
            default `$PLANNER_RUNS`, or `planner-runs` in the home folder).
    """
    study_path, name, submission_id, *storage = arguments
    root = Path(storage[0] if storage else os.environ.get("PLANNER_RUNS", "~/planner-runs"))
    root = root.expanduser()
    resumes = (root / name / "study.json").is_file()
    chosen = ["--resume", name] if resumes else [study_path, "--name", name]
    code = main(["sweep", *chosen, "--runs", str(root), "--address", "auto"])
    try:
        folder = RunFolder.open(name, root)
    except NotFoundError:
        return code
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leave_bundle(folder, submission_id)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
