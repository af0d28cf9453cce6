"""Number formats: what products run in, what a device offers, and what is only emulated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import torch
from torch import nn

from planner.engine.models.layers import Linear
from planner.errors import InfeasibleError
from planner.trial import PrecisionConfig

__all__ = ["COMPUTE_DTYPES", "REDUCE_DTYPES", "check_device", "set_products"]

COMPUTE_DTYPES: Final = {
    "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
    "fp8": torch.bfloat16,
}  # fmt: skip
"""Precision -> format of activations."""
REDUCE_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> format of gradients on their way between workers."""
_LEAST_CAPABILITY: Final = {"tf32": (8, 0), "bf16": (8, 0), "fp8": (8, 9)}
"""CUDA compute capability from which a device has a format in hardware."""


def check_device(precision: PrecisionConfig, device: torch.device) -> None:
    """Refuse a format that a device lacks, and set how it multiplies fp32.

    Raises:
        InfeasibleError: The device lacks the format.
    """
    name = precision.compute
    if device.type == "cpu" and name in ("tf32", "fp8"):
        hint = "Use precision.compute=bf16" + (
            " with precision.emulate=fp8-e4m3." if name == "fp8" else " or fp32."
        )
        raise InfeasibleError(f"a CPU has no {name}: precision.compute={name}.", hint=hint)
    if device.type == "cuda" and name in _LEAST_CAPABILITY:
        found = torch.cuda.get_device_capability(device)
        if found < _LEAST_CAPABILITY[name]:
            raise InfeasibleError(
                f"{name} needs compute capability {_LEAST_CAPABILITY[name]}: "
                f"{torch.cuda.get_device_name(device)} has {found}.",
                hint="Use precision.compute=fp32 or fp16.",
            )
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")


def set_products(blocks: Iterable[nn.Module], precision: PrecisionConfig) -> None:
    """Make the linear layers of blocks multiply in a format that is not the activations'."""
    product = _product(precision)
    if product is None:
        return
    for block in blocks:
        for module in block.modules():
            if isinstance(module, Linear):
                module.product = product


def _product(
    precision: PrecisionConfig,
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor] | None:
    if precision.compute == "fp8":
        from planner.engine.precision.float8 import float8_linear

        return float8_linear
    if precision.emulate == "none":
        return None
    from planner.engine.precision.emulation import EmulatedProduct

    return EmulatedProduct(precision.emulate, activations=precision.emulate_activations)
