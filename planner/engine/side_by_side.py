"""`python -m planner.engine.side_by_side DIR...`: short trials at the same time, torch loaded once.

Each folder holds the `config.json` of a trial of one worker, and gets its `result.json`. Every trial
runs in a process of its own, forked after torch was loaded and before it has started a thread.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch._dynamo  # noqa: F401 -- every optimizer loads it: before the forks, for all of them

import planner.engine.training  # noqa: F401 -- the same
from planner.engine.__main__ import main as run_engine


def main(folders: Sequence[Path]) -> int:
    """Run the trials and return 0 where all of them ended well, else 1."""
    children = [_forked(folder) for folder in folders]
    codes = [os.waitpid(child, 0)[1] for child in children]
    return int(any(codes))


def _forked(folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = run_engine([str(folder / "config.json"), "--out", str(folder)])
    except BaseException:  # a child must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main([Path(each) for each in sys.argv[1:]]))
