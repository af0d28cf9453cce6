"""Finds shipped and local files by name: studies and search spaces.

The look-up goes by `__file__`, so it is the same in a checkout, an editable install and a wheel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from planner.errors import NotFoundError, did_you_mean

__all__ = ["find", "names"]

Kind = Literal["studies", "search_spaces"]

_NOUN = {"studies": "study", "search_spaces": "search space"}


def _folders(kind: Kind) -> list[Path]:
    """Return the folders to look in: the working directory's, then the shipped one."""
    package = Path(__file__).resolve().parent
    shipped = [package.parent / kind, package / kind]
    return [folder for folder in [Path(kind), *shipped] if folder.is_dir()]


def names(kind: Kind) -> list[str]:
    """Return the names that `find` knows, sorted."""
    return sorted({path.stem for folder in _folders(kind) for path in folder.glob("*.yaml")})


def find(kind: Kind, name: str) -> Path:
    """Return the file that a name or a path stands for.

    A path is taken as given; a name is looked up in `./<kind>/`, then among the shipped files.

    Raises:
        NotFoundError: Nothing of that name exists.
    """
    path = Path(name)
    if path.is_file():
        return path
    for folder in _folders(kind):
        candidate = folder / f"{name}.yaml"
        if candidate.is_file():
            return candidate
    raise NotFoundError(
        f"no {_NOUN[kind]} named {name!r}, and no file at that path. "
        + did_you_mean(path.stem, names(kind)),
        hint=f"Give a path to a YAML file, or put one in ./{kind}/.",
    )
