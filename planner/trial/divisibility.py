"""The rule that most configurations break: one number must divide another."""

from __future__ import annotations

__all__ = ["divisors", "must_divide"]


def divisors(number: int) -> list[int]:
    """Return the divisors of a number in rising order.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [d for d in range(1, number + 1) if number % d == 0]


def must_divide(divisor_name: str, divisor: int, name: str, number: int) -> None:
    """Raise a ValueError that names both numbers and what would work, unless one divides the other."""
    if number % divisor:
        allowed = ", ".join(str(d) for d in divisors(number)[:12])
        raise ValueError(
            f"{divisor_name} must divide {name}: {name}={number}, {divisor_name}={divisor}. "
            f"Use one of {allowed}"
        )
