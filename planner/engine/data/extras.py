"""Packages that only some data need: the optional extra `data`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from planner.errors import ConfigError

__all__ = ["need"]


def need(package: str, purpose: str) -> Any:
    """Return an optional package's module.

    Raises:
        ConfigError: It is not installed; the message has the command that installs it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{purpose} needs the package {package!r}, which cannot be imported: {error}.",
            hint="Install it with: pip install 'planner[data]'",
        ) from error
