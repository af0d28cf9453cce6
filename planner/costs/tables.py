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

from planner.costs.cells import count_of, number_of, text_of
from planner.costs.cluster import Cluster, ClusterConfig, DeviceOverrides, resolve_cluster
from planner.costs.devices import known_devices
from planner.costs.frameworks import execution_fields, framework_precision, workspace_bytes
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
    memory = number_of(row, "gpu_mem_gb", 0.0)
    device = known_devices()[device_name(row.get("gpu") or "", memory)]
    watts = re.search(r"(\d+)w\b", (row.get("gpu") or "").lower())
    per_node = int(count_of(row, "gpus_per_node", float(device.devices_per_node)))
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
    width, heads = int(count_of(row, "hidden")), int(count_of(row, "heads"))
    experts = int(number_of(row, "n_experts", 0.0))
    gated = number_of(row, "mlp_mats", 2.0) >= 3
    arch = text_of(row, "arch")
    if "mamba" in arch:
        raise ConfigError("state-space layers are not modelled")
    mla = "mla" in arch
    return ModelShape(
        num_layers=int(count_of(row, "layers")),
        d_model=width,
        num_heads=heads,
        num_kv_heads=int(count_of(row, "kv_heads", float(heads))),
        head_dim=_head_dim(width, heads, experts),
        d_ff=_ffn(row, width, experts),
        mlp_matrices=3 if gated else 2,
        vocab_size=int(count_of(row, "vocab", 50304.0)),
        sequence_length=int(count_of(row, "seq")),
        tied_head=number_of(row, "tied_emb", 1.0) > 0,
        linear_bias=not gated and "mpt" not in arch,
        norm_width_factor=1 if gated else 2,
        num_experts=experts,
        experts_per_token=int(count_of(row, "topk", 2.0)) if experts else 0,
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
    given = int(count_of(row, "ffn", 4.0 * width))
    if experts and given > 4 * width:
        return given
    return 2048 if "mla" in text_of(row, "arch") and given > 8192 else given


def _precision(row: Mapping[str, str]) -> str:
    text = text_of(row, "precision") or "bf16"
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
    text = text_of(row, "recompute")
    if "sac" in text or "op" in text.split("("):
        return RECOMPUTE["operators"]
    return RECOMPUTE["full" if "full" in text else "attention" if "selective" in text else "none"]


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
    tensor, pipeline = count_of(row, "tp", 1.0), count_of(row, "pp", 1.0)
    context, per_node = count_of(row, "cp", 1.0), count_of(row, "gpus_per_node", 8.0)
    given = number_of(row, "gpus", 0.0)
    experts = max(1.0, number_of(row, "ep", 1.0))
    least = max(1.0, (given or per_node) // (tensor * pipeline * context))
    one_node = given or experts <= tensor * context * least
    data = count_of(row, "dp", least if one_node else max(least, experts // context))
    needed = data * tensor * pipeline * context
    if given and needed > given:
        raise ConfigError(
            f"the layout must fit the devices: dp {data:g} x tp {tensor:g} x pp {pipeline:g} x "
            f"cp {context:g} on {given:g}"
        )
    batch, micro = count_of(row, "gbs"), count_of(row, "mbs", 1.0)
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
    zero = 3.0 if number_of(row, "fsdp", 0.0) > 0 else number_of(row, "zero", 0.0)
    megatron = any(name in text_of(row, "framework") for name in ("megatron", "deepspeed"))
    precise = framework_precision(row, cluster, precision)
    precise["buffer_bytes"] += workspace_bytes(row, cluster.device.name)
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
        sequence_parallel=number_of(row, "seq_par", 0.0),
        virtual=max(1.0, number_of(row, "vpp", 1.0)),
        recompute=_recompute(row),
        frozen=float(
            any("lora" in text_of(row, name) for name in ("model", "notes", "source_loc"))
        ),
        **execution_fields(row),
    )
    step, memory = number_of(row, "step_s", 0.0), number_of(row, "mem_gib", 0.0)
    return TableRow(
        row_id=row.get("row_id") or "",
        source=row.get("source") or "",
        cluster=cluster,
        workload=workload,
        shape=shape,
        precision=precision,
        step_seconds=step or None,
        memory_bytes=memory * GIB or None,
        memory_kind=text_of(row, "mem_kind"),
        status=text_of(row, "status") or "ok",
        config_key="|".join((row.get(name) or "") for name in _CONFIG_COLUMNS),
        is_recompute_known=text_of(row, "recompute") != "unknown",
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
