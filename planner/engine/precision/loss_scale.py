"""Loss scaling for fp16, whose small gradients would round to zero (Micikevicius et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LossScale"]

_LARGEST = 2.0**24


@dataclass(slots=True)
class LossScale:
    """A factor on the loss that halves when gradients overflow and doubles after a calm while."""

    value: float = 2.0**12
    calm_steps: int = 0
    growth_steps: int = 200
    """Steps without overflow after which the factor doubles."""

    def after(self, *, overflowed: bool) -> None:
        """Take note of a step.

        >>> scale = LossScale(value=8.0)
        >>> scale.after(overflowed=True); scale.value
        4.0
        """
        if overflowed:
            self.value, self.calm_steps = max(self.value / 2.0, 1.0), 0
            return
        self.calm_steps += 1
        if self.calm_steps == self.growth_steps:
            self.value, self.calm_steps = min(self.value * 2.0, _LARGEST), 0
