"""Tables of configurations, measured or not, as rows that the formulas read.

Columns (units of their origin in brackets): `layers, hidden, heads, kv_heads, ffn, mlp_mats, vocab,
tied_emb, n_experts, topk, seq` of the model; `gpu, gpu_mem_gb [GB], gpus, gpus_per_node` of the
cluster; `gbs, mbs [sequences], tp, pp, vpp, dp, cp, ep, seq_par, zero, fsdp, precision, recompute,
attn, compile, framework` of the run; `step_s [s], mem_gib [GiB], mem_kind, source, row_id`. What is
absent takes its usual default; a row that cannot be read is returned with the reason.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from planner.costs.cluster import Cluster, ClusterConfig, DeviceOverrides, resolve_cluster
from planner.costs.devices import known_devices
from planner.costs.shapes import ModelShape
from planner.costs.workload import RECOMPUTE, Workload, model_fields
from planner.errors import ConfigError

__all__ = ["TableRow", "UnreadRow", "device_name", "read_table", "table_row"]

GIB: Final = 2.0**30


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """One row as a workload on a cluster, with what was measured."""

    row_id: str
    source: str
    cluster: Cluster
    workload: Workload
    shape: ModelShape
    precision: str
    step_seconds: float | None
    memory_bytes: float | None
    memory_kind: str
    status: str
    """`ok`, or what the table says instead, such as `oom`."""
    config_key: str
    """Equal for repetitions of one configuration; splits go by it."""
    is_recompute_known: bool = True
    weak: str = ""
    """Why the estimate is of low confidence, if it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnreadRow:
    """A row that cannot be estimated, with the reason."""

    row_id: str
    source: str
    reason: str


def _number(row: Mapping[str, str], name: str, default: float | None = None) -> float:
    text = (row.get(name) or "").strip()
    if text and text.lower() not in ("nan", "none", "na", "unknown"):
        try:
            value = float(text)
        except ValueError as error:
            raise ConfigError(f"{name} must be a number (got {text!r})") from error
        if not math.isfinite(value) or value < 0:
            raise ConfigError(f"{name} must be finite and not negative (got {text})")
        return value
    if default is None:
        raise ConfigError(f"{name} is missing")
    return default


def _count(row: Mapping[str, str], name: str, default: float | None = None) -> float:
    value = _number(row, name, default)
    if value < 1:
        raise ConfigError(f"{name} must be at least 1 (got {value:g})")
    return value


def _text(row: Mapping[str, str], name: str) -> str:
    text = (row.get(name) or "").strip().lower()
    return "" if text in ("nan", "none", "na") and name != "recompute" else text


def device_name(gpu: str, memory_gb: float) -> str:
    """Return the catalogue's name of a device as tables write it.

    >>> device_name("A100-SXM", 40.0), device_name("H100", 80.0), device_name("TPU-v5e", 16.0)
    ('a100-sxm-40gb', 'h100-sxm', 'tpu-v5e')

    Raises:
        ConfigError: Nothing in the catalogue resembles it.
    """
    known = known_devices()
    plain = re.sub(r"\(.*\)", "", gpu.lower()).strip().replace(" ", "-").replace("_", "-")
    plain = plain.removeprefix("nvidia-").removeprefix("amd-").removeprefix("google-")
    if plain in known and plain not in ("v100-sxm", "a100-sxm"):
        return plain
    family = re.match(r"tpu-v\w+|[a-z]+-?\d+[a-z]*", plain)
    base = family[0] if family else plain
    form = "pcie" if "pcie" in plain else "sxm"
    small = {("a100", True): "a100-sxm-40gb", ("v100", True): "v100-sxm-16gb"}
    limit = {"a100": 60.0, "v100": 24.0}.get(base, 0.0)
    shrunk = small.get((base, 0 < memory_gb <= limit))
    for name in (shrunk, f"{base}-{form}", base, f"{base}-sxm"):
        if name in known and name is not None:
            return name
    raise ConfigError(f"no device like {gpu!r} in the catalogue")


def _cluster(row: Mapping[str, str], num_devices: float) -> Cluster:
    memory = _number(row, "gpu_mem_gb", 0.0)
    device = known_devices()[device_name(row.get("gpu") or "", memory)]
    watts = re.search(r"(\d+)w\b", (row.get("gpu") or "").lower())
    per_node = int(_count(row, "gpus_per_node", float(device.devices_per_node)))
    per_node = max(1, min(per_node, int(num_devices)))
    nodes = max(1, math.ceil(num_devices / per_node))
    return resolve_cluster(
        ClusterConfig(
            device=device.name,
            num_nodes=nodes,
            devices_per_node=per_node,
            device_overrides=DeviceOverrides(
                power_watts=float(watts[1]) if watts else None,
                memory_bytes=_other_memory_bytes(memory, device.memory_bytes),
            ),
        )
    )


def _other_memory_bytes(nominal_gb: float, known_bytes: float) -> float | None:
    """Return the memory of a device that is sold with another size than the catalogue's, or None.

    A nominal gigabyte is 2^30 bytes, of which a device shows 99 %; sizes within a tenth are the same one.

    >>> _other_memory_bytes(80.0, 8.4933e10), round(_other_memory_bytes(96.0, 8.4933e10) / 2**30)
    (None, 95)
    """
    shown = 0.99 * nominal_gb * GIB
    return shown if shown > 0.0 and abs(shown / known_bytes - 1.0) > 0.1 else None


def _shape(row: Mapping[str, str]) -> ModelShape:
    width, heads = int(_count(row, "hidden")), int(_count(row, "heads"))
    experts = int(_number(row, "n_experts", 0.0))
    gated = _number(row, "mlp_mats", 2.0) >= 3
    arch = _text(row, "arch")
    if "mamba" in arch:
        raise ConfigError("state-space layers are not modelled")
    mla = "mla" in arch
    return ModelShape(
        num_layers=int(_count(row, "layers")),
        d_model=width,
        num_heads=heads,
        num_kv_heads=int(_count(row, "kv_heads", float(heads))),
        head_dim=_head_dim(width, heads, experts),
        d_ff=_ffn(row, width, experts),
        mlp_matrices=3 if gated else 2,
        vocab_size=int(_count(row, "vocab", 50304.0)),
        sequence_length=int(_count(row, "seq")),
        tied_head=_number(row, "tied_emb", 1.0) > 0,
        linear_bias=not gated and "mpt" not in arch,
        norm_width_factor=1 if gated else 2,
        num_experts=experts,
        experts_per_token=int(_count(row, "topk", 2.0)) if experts else 0,
        attention_params=187_107_328 if mla and width == 7168 else 0,
        num_shared_experts=1 if mla else 0,
        num_dense_layers=3 if mla else 0,
        dense_d_ff=18432 if mla else 0,
    )


def _head_dim(width: int, heads: int, experts: int) -> int:
    """Return the channels of a head; large mixtures of experts have heads of 128, or of 64."""
    even = max(1, width // heads)
    if experts < 64:
        return even
    return 128 if even % 8 == 0 else 64


def _ffn(row: Mapping[str, str], width: int, experts: int) -> int:
    given = int(_count(row, "ffn", 4.0 * width))
    if experts and given > 4 * width:
        return given
    return 2048 if "mla" in _text(row, "arch") and given > 8192 else given


def _precision(row: Mapping[str, str]) -> str:
    text = _text(row, "precision") or "bf16"
    for name, mark in (
        ("fp8", "fp8"),
        ("fp4", "fp4"),
        ("fp16", "fp16"),
        ("tf32", "tf32"),
        ("fp32", "fp32"),
    ):
        if mark in text:
            return name
    return "bf16"


def _recompute(row: Mapping[str, str]) -> float:
    text = _text(row, "recompute")
    if "sac" in text or "op" in text.split("("):
        return RECOMPUTE["operators"]
    return RECOMPUTE["full" if "full" in text else "attention" if "selective" in text else "none"]


_DEEPSPEED_BUFFER_BYTES: Final = 9e9
"""4.5 times the all-gather and the reduce bucket of 5e8 elements of 2 bytes each, with overlap of
communication (documentation of DeepSpeed's integration in Hugging Face Transformers)."""


def _precision_fields(row: Mapping[str, str], cluster: Cluster, precision: str) -> dict[str, float]:
    """Return the state bytes of the framework's recipe and the peaks.

    Megatron 2 + 4 + 12; DeepSpeed 2 + 2 + 12, under bf16 with fp32 gradients beside 2 + 6 + 12; FSDP fp32
    parameters 4 + 4 + 8 with half-precision gathers; fp32 4 + 4 + 8. A loss in fp32 keeps softmax and
    gradient (8 bytes a logit), torchtitan's the fp32 copy too, Megatron's and DeepSpeed's works in place, and
    llm-foundry's (Composer) is one kernel that keeps the logits and writes their gradient in their format (2).
    """
    peak = cluster.device.peak_flops_per_second(precision)
    half = "bf16" if "bf16" in cluster.device.peaks else "fp16"
    core = cluster.device.peaks.get(half if precision in ("fp8", "fp4") else precision, peak)
    framework = _text(row, "framework")
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
        fields["buffer_bytes"] = _DEEPSPEED_BUFFER_BYTES if _number(row, "zero", 0.0) > 0 else 0.0
    elif _number(row, "fsdp", 0.0) > 0:
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


def _workspace_bytes(row: Mapping[str, str], device: str) -> float:
    """Return what libraries hold inside the allocator, where the row's memory is the allocator's figure.

    The forward and the backward thread have a cuBLAS workspace each: 8.125 MiB, on Hopper and in
    deterministic mode 32 MiB (torch's documentation, CUBLAS_WORKSPACE_CONFIG). Megatron's layers are
    Transformer Engine's, with one of 4 MiB, 32 MiB from Hopper on, or its own (`local`), whose attention
    has a buffer of scores instead, 2 b a s^2 / t.
    """
    if "allocated" not in _text(row, "mem_kind"):
        return 0.0
    repeatable = "deterministic-mode=true" in _text(row, "notes")
    total = 2.0 * (32.0 if device.startswith(_HOPPER) or repeatable else 8.125) * _MIB
    if _text(row, "attn") == "local":
        scores = _number(row, "mbs", 1.0) * _number(row, "heads") * _number(row, "seq") ** 2
        return total + 2.0 * scores / _number(row, "tp", 1.0)
    if "megatron" in _text(row, "framework"):
        total += (32.0 if device.startswith(_SINCE_HOPPER) else 4.0) * _MIB
    return total


def _execution_fields(row: Mapping[str, str]) -> dict[str, float]:
    """Return the fields that the framework and its kernels decide."""
    attention = _text(row, "attn")
    megatron = "megatron" in _text(row, "framework")
    hidden = "bridge" in _text(row, "framework") or "async tp" in _text(row, "notes")
    return {
        "exposed": 0.5 if hidden else 1.0,
        "attention_gain": 1.5 if "te)" in attention or "cudnn" in attention else 1.0,
        "flash": float("flash" in attention or "cudnn" in attention or not attention),
        "compiled": _number(row, "compile", 0.0),
        "early_stop": float(
            _number(row, "fsdp", 0.0) > 0 and "deepspeed" not in _text(row, "framework")
        ),
        "release": _release(row),
        "fused_gate": float(megatron),
        "weighted_inner": float(megatron),
    }


def _release(row: Mapping[str, str]) -> float:
    """Return the year of a framework's release that its name bears, such as 26.04 of a container, or 0."""
    found = re.search(r"\b([2-4]\d)\.(0[1-9]|1[0-2])\b", row.get("framework") or "")
    return 2000.0 + int(found[1]) + (int(found[2]) - 1) / 12.0 if found else 0.0


def _weakness(shape: ModelShape, precision: str, context: float, cluster: Cluster) -> str:
    device = cluster.device
    marks = {
        "mixture of experts": shape.num_experts > 0,
        "fp8 or fp4": precision in ("fp8", "fp4"),
        "context parallelism": context > 1,
        "TPU": device.is_tpu,
        f"the catalogue's row of {device.name} is recalled": (
            device.confidence == "recalled" and not device.is_cpu
        ),
    }
    return ", ".join(name for name, holds in marks.items() if holds)


def _degrees(row: Mapping[str, str]) -> dict[str, float]:
    """Return how a row spreads its batch: degrees of parallelism, sequences, and the devices."""
    tensor, pipeline = _count(row, "tp", 1.0), _count(row, "pp", 1.0)
    context, per_node = _count(row, "cp", 1.0), _count(row, "gpus_per_node", 8.0)
    given = _number(row, "gpus", 0.0)
    experts = max(1.0, _number(row, "ep", 1.0))
    least = max(1.0, (given or per_node) // (tensor * pipeline * context))
    one_node = given or experts <= tensor * context * least
    data = _count(row, "dp", least if one_node else max(least, experts // context))
    needed = data * tensor * pipeline * context
    if given and needed > given:
        raise ConfigError(
            f"the layout must fit the devices: dp {data:g} x tp {tensor:g} x pp {pipeline:g} x "
            f"cp {context:g} on {given:g}"
        )
    batch, micro = _count(row, "gbs"), _count(row, "mbs", 1.0)
    if batch < data * micro:
        raise ConfigError(
            f"gbs must be at least dp x mbs: {batch:g} sequences on {data:g} x {micro:g}"
        )
    return {
        "data": data, "tensor": tensor, "pipeline": pipeline, "context": context,
        "expert": experts, "micro_batch": micro, "num_micro_batches": batch / (data * micro),
        "num_devices": given or needed,
    }  # fmt: skip


def table_row(row: Mapping[str, str]) -> TableRow:
    """Return one row of a table as a workload on a cluster.

    Raises:
        ConfigError: A column is missing or out of range, or the device is not known.
    """
    degrees = _degrees(row)
    num_devices, context = degrees.pop("num_devices"), degrees["context"]
    cluster, shape, precision = _cluster(row, num_devices), _shape(row), _precision(row)
    zero = 3.0 if _number(row, "fsdp", 0.0) > 0 else _number(row, "zero", 0.0)
    megatron = any(name in _text(row, "framework") for name in ("megatron", "deepspeed"))
    precise = _precision_fields(row, cluster, precision)
    precise["buffer_bytes"] += _workspace_bytes(row, cluster.device.name)
    workload = Workload(
        **model_fields(shape)
        | {
            "dropout": float(
                megatron and shape.mlp_matrices == 2 and "llm.c" not in row.get("source", "")
            )
        },
        **precise,
        **degrees,
        shard=degrees["data"] * context if zero else 1.0,
        zero_stage=zero,
        sequence_parallel=_number(row, "seq_par", 0.0),
        virtual=max(1.0, _number(row, "vpp", 1.0)),
        recompute=_recompute(row),
        frozen=float(any("lora" in _text(row, name) for name in ("model", "notes", "source_loc"))),
        **_execution_fields(row),
    )
    step, memory = _number(row, "step_s", 0.0), _number(row, "mem_gib", 0.0)
    return TableRow(
        row_id=row.get("row_id") or "",
        source=row.get("source") or "",
        cluster=cluster,
        workload=workload,
        shape=shape,
        precision=precision,
        step_seconds=step or None,
        memory_bytes=memory * GIB or None,
        memory_kind=_text(row, "mem_kind"),
        status=_text(row, "status") or "ok",
        config_key="|".join((row.get(name) or "") for name in _CONFIG_COLUMNS),
        is_recompute_known=_text(row, "recompute") != "unknown",
        weak=_weakness(shape, precision, context, cluster),
    )


_CONFIG_COLUMNS: Final = (
    "source", "gpu", "layers", "hidden", "heads", "ffn", "n_experts", "seq", "gpus", "gbs", "mbs",
    "tp", "pp", "vpp", "dp", "cp", "ep", "zero", "precision", "recompute",
)  # fmt: skip


def read_table(path: Path) -> list[TableRow | UnreadRow]:
    """Return the rows of a CSV file; a row that cannot be read keeps its reason.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} must be a readable CSV table: {error}.") from error
    if not rows:
        raise ConfigError(f"{path} must be a table with a heading and rows: it has no row.")
    read: list[TableRow | UnreadRow] = []
    for number, row in enumerate(rows, start=2):
        try:
            read.append(table_row(row))
        except ConfigError as error:
            name = row.get("row_id") or f"line {number}"
            read.append(
                UnreadRow(row_id=name, source=row.get("source") or "", reason=error.message)
            )
    return read
