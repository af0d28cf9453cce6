"""`python -m planner.engine.estimate CONFIG.json`: peak memory of a trial's worker, as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from planner.config import load_config
from planner.errors import PlannerError
from planner.trial import TrialConfig


def main(arguments: list[str] | None = None) -> int:
    """Print the traced peak and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m planner.engine.estimate",
        description="Trace the memory of one configuration without running it.",
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, help="TrialConfig as JSON or YAML")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, TrialConfig)
        from planner.engine.fake_memory import trace_peak

        peak = trace_peak(config)
    except PlannerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(asdict(peak) | {"resident_bytes": peak.resident_bytes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
