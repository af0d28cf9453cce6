"""Linear layers in fp8: e4m3 forward, e5m2 gradients, one scale per tensor from its largest value.

The recipe of Micikevicius et al. (2022), "FP8 formats for deep learning", with scales of the
current values instead of a history of former ones.
"""

from __future__ import annotations

from typing import Any

import torch

from planner.engine.torch_internals import scaled_product

__all__ = ["float8_linear"]

_FORWARD, _BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


def _quantised(x: torch.Tensor, form: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values in fp8 and the scale to multiply them with."""
    top = torch.finfo(form).max
    scale = x.detach().abs().amax().float().clamp(min=1e-12) / top
    return (x.float() / scale).clamp(-top, top).to(form), scale


def _product(
    a: torch.Tensor, a_scale: torch.Tensor, b: torch.Tensor, b_scale: torch.Tensor
) -> torch.Tensor:
    """Return a (m, k) times b (k, n), in bf16; the hardware wants b by columns."""
    columns = b.t().contiguous().t()
    return scaled_product(a.contiguous(), columns, a_scale, b_scale, torch.bfloat16)


class _Float8Product(torch.autograd.Function):
    """y = x W^T with all three products of forward and backward pass in fp8."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x8, x_scale = _quantised(x, _FORWARD)
        w8, w_scale = _quantised(weight, _FORWARD)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        return _product(x8, x_scale, w8.t(), w_scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        g8, g_scale = _quantised(gradient, _BACKWARD)
        return (
            _product(g8, g_scale, w8, w_scale),
            _product(g8.t(), g_scale, x8, x_scale),
        )


def float8_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Map (..., in) to (..., out) in bf16; in, out and the number of rows are multiples of 16."""
    rows = _Float8Product.apply(x.reshape(-1, x.shape[-1]), weight)
    result = rows.view(*x.shape[:-1], weight.shape[0])
    return result if bias is None else result + bias
