"""Emulated formats: values are rounded as a format would round them, products run as before.

For studies of accuracy on devices that lack a format. Gradients pass the rounding unchanged
(straight-through estimator; Bengio et al., 2013).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F

__all__ = ["EmulatedProduct", "rounded"]

_FLOATS: Final = {"fp8-e4m3": torch.float8_e4m3fn, "fp8-e5m2": torch.float8_e5m2}
_LEVELS: Final = {"int8": 127, "int4": 7}
"""Largest value of a symmetric integer format."""


def rounded(x: torch.Tensor, form: str) -> torch.Tensor:
    """Return values rounded to a format, with one scale per row (the last dimension).

    >>> rounded(torch.tensor([[7.0, 3.4, -1.6]]), "int4")
    tensor([[ 7.,  3., -2.]])
    """
    largest = x.detach().abs().amax(-1, keepdim=True).float().clamp(min=1e-12)
    if form in _LEVELS:
        scale = largest / _LEVELS[form]
        return ((x.float() / scale).round() * scale).to(x.dtype)
    target = _FLOATS[form]
    scale = largest / torch.finfo(target).max
    return ((x.float() / scale).to(target).float() * scale).to(x.dtype)


class _StraightThrough(torch.autograd.Function):
    """Rounds forward, passes the gradient on."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, form: str) -> torch.Tensor:
        return rounded(x, form)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


@dataclass(frozen=True, slots=True)
class EmulatedProduct:
    """A linear map whose weights, and inputs where asked, are rounded to a format."""

    form: str
    activations: bool

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Map (..., in) to (..., out)."""
        if self.activations:
            x = _StraightThrough.apply(x, self.form)
        return F.linear(x, _StraightThrough.apply(weight, self.form), bias)
