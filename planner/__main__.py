"""`python -m planner`, and the `planner` command."""

import sys

from planner.cli import main


def run() -> None:
    """Run the command line and exit with its code."""
    sys.exit(main())


if __name__ == "__main__":
    run()
