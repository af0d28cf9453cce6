"""The runners-up: options nearly as good, each different in a way that someone may prefer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from planner.recommendation.answer import Option, RunnerUp, rank
from planner.units import format_count, format_seconds

__all__ = ["runners_up"]

_NEARLY: Final = 0.01
"""Share of the loss that a faster or cheaper option may give up."""
_SLOWEST: Final = 3.0
"""A cheaper option takes at most this many times as long."""
_NOTICEABLE: Final = 0.1
"""Share by which an option must be faster, cheaper, smaller or larger to be worth a line."""
_HEDGES: Final = {
    "larger": "a hedge, should the best size be larger than the law says",
    "next best": "nearly the same with another shape",
    "other layout": "the same model on another layout",
}
"""What an option is for where it gains nothing that the estimate sees."""


def runners_up(choice: Option, options: Sequence[Option], number: int) -> tuple[RunnerUp, ...]:
    """Return up to so many options beside the choice, no two alike."""
    found: list[RunnerUp] = []
    seen = {_kind(choice)}
    for title, option in _proposals(choice, options):
        if len(found) == number:
            break
        if _kind(option) not in seen:
            seen.add(_kind(option))
            found.append(
                RunnerUp(
                    title=title,
                    option=option,
                    gives_up=_gives_up(choice, option),
                    gains=_gains(choice, option) or _HEDGES.get(title, "another trade-off"),
                )
            )
    return tuple(found)


def _kind(option: Option) -> tuple[object, ...]:
    return (option.num_layers, option.d_model, option.precision, option.num_workers)


def _proposals(choice: Option, options: Sequence[Option]) -> Iterator[tuple[str, Option]]:
    """Yield options worth naming, the most useful first; then the next best shapes."""
    eligible = [row for row in options if row.is_eligible] or list(options)
    near = [row for row in options if row.predicted_loss <= choice.predicted_loss * (1 + _NEARLY)]
    smaller = [
        r
        for r in near
        if r.is_eligible and r.num_params <= choice.num_params * (1 - 3 * _NOTICEABLE)
    ]
    if smaller:
        fewest = min(row.num_params for row in smaller)
        yield "smaller to serve", min((r for r in smaller if r.num_params == fewest), key=rank)
    for title, column in (("faster", "seconds"), ("cheaper", "device_hours")):
        bearable = [row for row in near if row.seconds <= choice.seconds * _SLOWEST]
        best = min(bearable, key=_of(column), default=None)
        if best is not None and _of(column)(best) <= _of(column)(choice) * (1 - _NOTICEABLE):
            yield title, best
    larger = [r for r in eligible if r.num_params >= choice.num_params * (1 + 3 * _NOTICEABLE)]
    if larger:
        yield "larger", min(larger, key=rank)
    for row in sorted(eligible, key=rank):
        if abs(row.num_params / choice.num_params - 1) >= _NOTICEABLE:
            yield "next best", row
    for row in sorted(options, key=rank):
        yield "other layout", row


def _of(column: str) -> Callable[[Option], float]:
    return lambda option: float(getattr(option, column))


def _gives_up(choice: Option, option: Option) -> str:
    """Return what is worse than the choice."""
    parts = []
    excess = option.predicted_loss / choice.predicted_loss - 1
    if excess > 5e-5:
        parts.append(f"{excess:.2%} of loss")
    if option.seconds > choice.seconds * (1 + _NOTICEABLE):
        parts.append(f"{format_seconds(option.seconds - choice.seconds)} more time")
    if option.device_hours > choice.device_hours * (1 + _NOTICEABLE):
        parts.append(f"{option.device_hours / choice.device_hours - 1:.0%} more device-hours")
    if option.num_params > choice.num_params * (1 + _NOTICEABLE):
        parts.append(f"{option.num_params / choice.num_params - 1:.0%} more parameters to serve")
    return ", ".join(parts) or "nothing that the estimate sees"


def _gains(choice: Option, option: Option) -> str:
    """Return what is better than the choice."""
    parts = []
    if option.predicted_loss < choice.predicted_loss * (1 - 5e-5):
        parts.append(f"{1 - option.predicted_loss / choice.predicted_loss:.2%} of loss")
    if option.num_params < choice.num_params * (1 - _NOTICEABLE):
        parts.append(
            f"{1 - option.num_params / choice.num_params:.0%} fewer parameters "
            f"({format_count(option.num_params)})"
        )
    if option.seconds < choice.seconds * (1 - _NOTICEABLE):
        parts.append(f"{1 - option.seconds / choice.seconds:.0%} less time")
    if option.device_hours < choice.device_hours * (1 - _NOTICEABLE):
        parts.append(f"{1 - option.device_hours / choice.device_hours:.0%} fewer device-hours")
    if option.precision != choice.precision:
        parts.append(f"{option.precision} instead of {choice.precision}")
    return ", ".join(parts)
