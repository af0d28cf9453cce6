"""Every error that a user can cause, as one small tree.

    PlannerError
    |-- ConfigError (ValueError)        what a person wrote is wrong: YAML, options, names
    |   `-- NotFoundError (LookupError) a name that nothing answers to: study, space, device, run
    |-- InfeasibleError (ValueError)    nothing fits: memory, divisibility, the cluster
    |-- BudgetError (ValueError)        the budget cannot pay for what was asked
    |-- TrialError (RuntimeError)       a trial could not be carried out
    |-- FitError (ValueError)           the data cannot identify the law
    `-- JobError (RuntimeError)         a cluster did not do what was asked
        `-- ClusterUnreachableError (ConnectionError)

A message states the rule, the values and the next step. Nothing here formats or prints.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "BudgetError",
    "ClusterUnreachableError",
    "ConfigError",
    "FitError",
    "InfeasibleError",
    "JobError",
    "NotFoundError",
    "PlannerError",
    "TrialError",
    "did_you_mean",
]


class PlannerError(Exception):
    """Base of every error that planner raises on purpose.

    Args:
        message: What must hold, what was found, and where.
        hint: The next step, shown on a line of its own.
    """

    exit_code: ClassVar[int] = 1
    """What the command line returns (DESIGN section 9)."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


def _rebuild(kind: type[PlannerError], message: str, hint: str | None) -> PlannerError:
    return kind(message, hint=hint)


class ConfigError(PlannerError, ValueError):
    """A file, an option or a name that a person wrote is not valid."""

    exit_code = 2


class NotFoundError(ConfigError, LookupError):
    """A name that nothing answers to."""

    exit_code = 3


class InfeasibleError(PlannerError, ValueError):
    """No configuration satisfies the constraints."""

    exit_code = 5


class BudgetError(PlannerError, ValueError):
    """The budget cannot pay for what was asked."""

    exit_code = 5


class TrialError(PlannerError, RuntimeError):
    """A trial could not be carried out."""


class FitError(PlannerError, ValueError):
    """The data cannot identify the law that was asked for."""

    exit_code = 7


class JobError(PlannerError, RuntimeError):
    """A cluster did not do what was asked."""


class ClusterUnreachableError(JobError, ConnectionError):
    """No cluster answers at the address, or it does not let us in."""

    exit_code = 4


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names the closest known name, or the known names.

    >>> did_you_mean("asah", ["asha", "none"])
    "Did you mean 'asha'?"
    >>> did_you_mean("zzz", ["asha", "none"])
    'Known: asha, none.'
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(names)}." if names else "None is known."
