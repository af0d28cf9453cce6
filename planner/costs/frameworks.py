"""What a training framework makes of a row of a table: recipes of states, kernels, workspaces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from planner.costs.cells import number_of, text_of
from planner.costs.cluster import Cluster

__all__ = ["execution_fields", "framework_precision", "workspace_bytes"]

_DEEPSPEED_BUFFER_BYTES: Final = 9e9
"""4.5 times the all-gather and the reduce bucket of 5e8 elements of 2 bytes each, with overlap of
communication (documentation of DeepSpeed's integration in Hugging Face Transformers)."""


def framework_precision(
    row: Mapping[str, str], cluster: Cluster, precision: str
) -> dict[str, float]:
    """Return the state bytes of the framework's recipe and the peaks.

    Megatron 2 + 4 + 12; DeepSpeed 2 + 2 + 12, under bf16 with fp32 gradients beside 2 + 6 + 12; FSDP fp32
    parameters 4 + 4 + 8 with half-precision gathers; fp32 4 + 4 + 8. A loss in fp32 keeps softmax and
    gradient (8 bytes a logit), torchtitan's the fp32 copy too, Megatron's and DeepSpeed's works in place, and
    llm-foundry's (Composer) is one kernel that keeps the logits and writes their gradient in their format (2).
    """
    peak = cluster.device.peak_flops_per_second(precision)
    half = "bf16" if "bf16" in cluster.device.peaks else "fp16"
    core = cluster.device.peaks.get(half if precision in ("fp8", "fp4") else precision, peak)
    framework = text_of(row, "framework")
    in_place = "mega" in framework or "deepspeed" in framework
    fields = {
        "loss_bytes": 4.0 if in_place else 8.0,
        "peak_flops_per_second": peak, "attention_peak_flops_per_second": core,
        "vector_flops_per_second": cluster.device.peaks.get("fp32", peak / 16.0),
        "is_fp8": float(precision in ("fp8", "fp4")), "activation_bytes": 2.0, "gather_bytes": 2.0,
        "buffer_bytes": 0.0,
    }  # fmt: skip
    recipe = (2.0, 4.0, 12.0, 4.0)
    if precision in ("fp32", "tf32"):
        recipe, fields["activation_bytes"], fields["gather_bytes"] = (4.0, 4.0, 8.0, 4.0), 4.0, 4.0
    elif "deepspeed" in framework:
        recipe = (2.0, 6.0 if precision == "bf16" else 2.0, 12.0, 2.0)
        fields["gather_ports"] = 1.0  # one ring, parameter by parameter
        fields["buffer_bytes"] = _DEEPSPEED_BUFFER_BYTES if number_of(row, "zero", 0.0) > 0 else 0.0
    elif number_of(row, "fsdp", 0.0) > 0:
        fields["gradient_buffers"] = 0.0
        if "torchtitan" in framework:
            fields["loss_bytes"] = 12.0
        elif "composer" in framework:
            fields["loss_bytes"] = fields["activation_bytes"]
        recipe = (4.0, 4.0, 8.0, 4.0 if "torchtitan" in framework else 2.0)
    names = ("param_bytes", "gradient_bytes", "optimizer_bytes", "reduce_bytes")
    return fields | dict(zip(names, recipe, strict=True))


_HOPPER: Final = ("h100", "h200")
_SINCE_HOPPER: Final = (*_HOPPER, "b200", "gb200", "b300", "gb300")
_MIB: Final = 2.0**20


def workspace_bytes(row: Mapping[str, str], device: str) -> float:
    """Return what libraries hold inside the allocator, where the row's memory is the allocator's figure.

    The forward and the backward thread have a cuBLAS workspace each: 8.125 MiB, on Hopper and in
    deterministic mode 32 MiB (torch's documentation, CUBLAS_WORKSPACE_CONFIG). Megatron's layers are
    Transformer Engine's, with one of 4 MiB, 32 MiB from Hopper on, or its own (`local`), whose attention
    has a buffer of scores instead, 2 b a s^2 / t.
    """
    if "allocated" not in text_of(row, "mem_kind"):
        return 0.0
    repeatable = "deterministic-mode=true" in text_of(row, "notes")
    total = 2.0 * (32.0 if device.startswith(_HOPPER) or repeatable else 8.125) * _MIB
    if text_of(row, "attn") == "local":
        scores = number_of(row, "mbs", 1.0) * number_of(row, "heads") * number_of(row, "seq") ** 2
        return total + 2.0 * scores / number_of(row, "tp", 1.0)
    if "megatron" in text_of(row, "framework"):
        total += (32.0 if device.startswith(_SINCE_HOPPER) else 4.0) * _MIB
    return total


def execution_fields(row: Mapping[str, str]) -> dict[str, float]:
    """Return the fields that the framework and its kernels decide."""
    attention = text_of(row, "attn")
    megatron = "megatron" in text_of(row, "framework")
    hidden = "bridge" in text_of(row, "framework") or "async tp" in text_of(row, "notes")
    return {
        "exposed": 0.5 if hidden else 1.0,
        "attention_gain": 1.5 if "te)" in attention or "cudnn" in attention else 1.0,
        "flash": float("flash" in attention or "cudnn" in attention or not attention),
        "compiled": number_of(row, "compile", 0.0),
        "early_stop": float(
            number_of(row, "fsdp", 0.0) > 0 and "deepspeed" not in text_of(row, "framework")
        ),
        "release": _release(row),
        "fused_gate": float(megatron),
        "weighted_inner": float(megatron),
    }


def _release(row: Mapping[str, str]) -> float:
    """Return the year of a framework's release that its name bears, such as 26.04 of a container, or 0."""
    found = re.search(r"\b([2-4]\d)\.(0[1-9]|1[0-2])\b", row.get("framework") or "")
    return 2000.0 + int(found[1]) + (int(found[2]) - 1) / 12.0 if found else 0.0
