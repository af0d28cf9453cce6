"""`planner estimate`: memory, time and money of a model, without a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.output import echo_json, echo_note, echo_table, echo_text

if TYPE_CHECKING:
    from planner.costs.calibration import Calibration
    from planner.costs.cluster import Cluster
    from planner.costs.quotes import Quote
    from planner.costs.shapes import ModelShape
    from planner.costs.tables import TableRow, UnreadRow

__all__ = ["command"]


@click.command()
@click.option("--model", help="A public shape, such as gpt-7b or llama-3-70b.")
@click.option("--layers", type=int, help="Blocks of a decoder described here.")
@click.option("--width", type=int, help="Its width; heads of 128 channels, or 64 where narrow.")
@click.option("--cluster", default="cpu", show_default=True, help="COUNTxDEVICE, e.g. 64xh100-sxm.")
@click.option("--tokens", help="Training tokens, e.g. 140e9 or 300B; default 20 per parameter.")
@click.option("--sequence-length", type=click.IntRange(min=1), help="Tokens of a sequence.")
@click.option("--sequences-per-step", type=click.IntRange(min=1), help="Default: about 2M tokens.")
@click.option("--precision", help="One or several of bf16, fp16, fp8, tf32, fp32, with commas.")
@click.option("--optimizer", default="adamw", show_default=True, help="Decides the state memory.")
@click.option("--usd-per-device-hour", type=float, help="Price; without one no money is shown.")
@click.option("--calibrate", type=click.Path(path_type=Path), help="Measured trials (CSV).")
@click.option("--table", type=click.Path(path_type=Path), help="Score the rows of a CSV table.")
@click.option("--top", default=3, show_default=True, type=click.IntRange(min=1), help="Layouts.")
@click.option("--models", is_flag=True, help="List the public shapes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(**options: Any) -> None:
    """Estimate memory, time, money and energy of a training, without a study.

    \b
    Examples:
      planner estimate --model gpt-7b --cluster 64xh100-sxm --tokens 140e9
      planner estimate --table configurations.csv --json
    """  # noqa: D301
    from planner.errors import ConfigError

    if options["models"]:
        _echo_models(options["as_json"])
    elif options["table"] is not None:
        _echo_scores(options["table"], options["calibrate"], options["as_json"])
    elif options["model"] is None and (options["layers"] is None or options["width"] is None):
        raise ConfigError(
            "name what to estimate: --model NAME, --layers with --width, or --table FILE.",
            hint="planner estimate --models lists the names.",
        )
    else:
        _echo_estimate(options)


def _shape(options: dict[str, Any]) -> ModelShape:
    from planner.costs.shapes import decoder_shape, named_shape

    length = options["sequence_length"]
    if options["model"] is not None:
        return named_shape(options["model"], sequence_length=length)
    return decoder_shape(options["layers"], options["width"], sequence_length=length or 2048)


def _cluster(options: dict[str, Any]) -> Cluster:
    from planner.config import parse_config
    from planner.costs.cluster import ClusterConfig, parse_cluster, resolve_cluster

    config = parse_cluster(options["cluster"])
    if options["usd_per_device_hour"] is not None:
        data = config.model_dump(mode="json")
        data["usd_per_device_hour"] = options["usd_per_device_hour"]
        config = parse_config(data, ClusterConfig, "--usd-per-device-hour")
    return resolve_cluster(config)


def _echo_estimate(options: dict[str, Any]) -> None:
    from planner.costs.candidates import LayoutProblem
    from planner.costs.layouts import precisions_of
    from planner.costs.params import count_shape_params
    from planner.costs.quotes import default_sequences_per_step, quote
    from planner.units import parse_count

    shape, cluster = _shape(options), _cluster(options)
    if shape.family == "convnet":
        _echo_convnet(shape, cluster, options)
        return
    problem = LayoutProblem(
        shape=shape,
        cluster=cluster,
        sequences_per_step=options["sequences_per_step"]
        or default_sequences_per_step(shape, cluster),
        precisions=_listed(options["precision"]) or (precisions_of(cluster),),
        optimizer=options["optimizer"],
    )
    tokens = options["tokens"]
    amount = parse_count(tokens) if tokens else 20.0 * count_shape_params(shape).non_embedding
    calibration = _calibration(options["calibrate"], cluster.device.name)
    found = quote(problem, amount, num_best=options["top"], calibration=calibration)
    if options["as_json"]:
        echo_json(_document(found, cluster))
    else:
        _echo_quote(found, cluster)


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(name for part in (text or "").split(",") if (name := part.strip()))


def _calibration(path: Path | None, device: str) -> Calibration | None:
    """Return the calibration on the rows of a table that ran on the device."""
    if path is None:
        return None
    from planner.costs.calibration import calibrate
    from planner.costs.scores import trial_of
    from planner.costs.tables import TableRow, read_table
    from planner.errors import ConfigError

    rows = read_table(path)
    _echo_unread(rows)
    own = [
        row
        for row in rows
        if isinstance(row, TableRow)
        and row.cluster.device.name == device
        and (row.step_seconds or row.memory_bytes)
    ]
    sources = {row.source for row in own}
    if len(sources) != 1:
        raise ConfigError(
            f"--calibrate needs measured rows of one cluster: {path} has {len(sources)} sources "
            f"with step_s or mem_gib on {device}{': ' + ', '.join(sorted(sources)) if sources else ''}.",
            hint="Keep the rows that were measured on your cluster, under one name in `source`.",
        )
    return calibrate([trial_of(row) for row in own])


def _document(found: Quote, cluster: Cluster) -> dict[str, Any]:
    from dataclasses import fields

    from planner.cli.output import plain

    document: dict[str, Any] = plain(
        {
            f.name: getattr(found, f.name)
            for f in fields(found)
            if f.name not in ("search", "layouts")
        }
    )
    document["layouts"] = []
    for item in found.layouts:
        layout = {
            f.name: getattr(item.layout, f.name)
            for f in fields(item.layout)
            if f.name != "workload"
        }
        own = {f.name: getattr(item, f.name) for f in fields(item) if f.name != "layout"}
        document["layouts"].append({**plain(own), "layout": plain(layout)})
    document["num_params"] = found.count.total
    document["cluster"] = str(cluster)
    document["memory_capacity_bytes"] = cluster.usable_memory_bytes
    document["price_date"] = cluster.price_date
    document["num_candidates"] = found.search.num_candidates
    document["num_feasible"] = found.search.num_feasible
    document["rejected"] = [
        {"rule": rule, "candidates": number} for rule, number in found.search.rejected
    ]
    return document


def _echo_quote(found: Quote, cluster: Cluster) -> None:
    from planner.units import (
        format_bytes,
        format_count,
        format_flops,
        format_kwh,
        format_seconds,
        format_usd,
    )

    best = found.layouts[0]
    shape_line = f"{format_count(found.count.total)} parameters"
    if found.count.active != found.count.total:
        shape_line += f" ({format_count(found.count.active)} active)"
    echo_text(
        f"{shape_line}, {format_count(found.train_tokens)} tokens, {format_flops(found.train_flops)}"
        f" on {cluster}; {found.sequences_per_step} sequences per step, {found.num_steps} steps"
    )
    headings = [
        "layout",
        "mb",
        "recompute",
        "precision",
        "step",
        "90 % interval",
        "MFU",
        "memory",
        "time",
        "USD",
        "kWh",
        "kgCO2",
        "against the best",
    ]
    rows = []
    for item in found.layouts:
        layout = item.layout
        rows.append([
            str(layout), str(layout.micro_batch_sequences), layout.activation_checkpointing,
            layout.precision, format_seconds(item.step_seconds),
            f"{format_seconds(item.step_seconds_lower)} - {format_seconds(item.step_seconds_upper)}",
            f"{item.mfu:.1%}", format_bytes(layout.memory_bytes), format_seconds(item.train_seconds),
            "-" if item.usd is None else format_usd(item.usd),
            "-" if item.kwh is None else format_kwh(item.kwh),
            "-" if item.gco2 is None else f"{item.gco2 / 1e3:,.3g}", item.lost_by,
        ])  # fmt: skip
    echo_table(headings, rows, left=(0, 2, 3, 5, 12))
    echo_text(
        f"start-up: {format_seconds(found.startup_seconds)} in USD, kWh and kgCO2, not in time"
    )
    step = best.layout.step_breakdown_seconds
    echo_text("step: " + _shares(step, lambda x: f"{x / sum(step.values()):.0%}"))
    echo_text("memory: " + _shares(best.layout.memory_breakdown_bytes, format_bytes))
    echo_text(f"binds: {found.binds}")
    rejected = "; ".join(f"{number} break '{rule}'" for rule, number in found.search.rejected[:4])
    echo_text(
        f"{found.search.num_feasible} of {found.search.num_candidates} layouts are feasible"
        + (f"; {rejected}" if rejected else "")
    )
    echo_text(f"MFU convention: {found.mfu_convention}")
    _echo_notes(found, cluster)


def _echo_notes(found: Quote, cluster: Cluster) -> None:
    echo_note(f"confidence: {found.confidence} ({found.confidence_reason})")
    from planner.units import format_usd

    if cluster.usd_per_device_hour is None:
        echo_note("no price is known: give --usd-per-device-hour")
    elif cluster.price_date:
        echo_note(
            f"price: {format_usd(cluster.usd_per_device_hour)} per device-hour as of "
            f"{cluster.price_date}"
        )


def _shares(parts: dict[str, float], form: Any) -> str:
    total = sum(parts.values())
    shown = {name: value for name, value in parts.items() if value > 0.005 * total}
    return ", ".join(f"{name} {form(value)}" for name, value in shown.items())


def _echo_convnet(shape: ModelShape, cluster: Cluster, options: dict[str, Any]) -> None:
    from planner.costs.convnets import convnet_cost
    from planner.costs.layouts import precisions_of
    from planner.units import format_bytes, format_count, format_seconds, parse_count

    precision = options["precision"] or precisions_of(cluster)
    images = options["sequences_per_step"] or 256 * cluster.num_devices
    cost = convnet_cost(shape, cluster, images_per_step=images, precision=precision)
    total = parse_count(options["tokens"]) if options["tokens"] else 90 * 1.28e6
    seconds = total / images * cost.step_seconds / cluster.goodput
    if options["as_json"]:
        echo_json({"cost": cost, "images": total, "train_seconds": seconds})
        return
    headings = [
        "parameters",
        "forward FLOPs per image",
        "images per step",
        "step",
        "memory",
        "time",
    ]
    echo_table(headings, [[
        format_count(cost.num_params), f"{cost.forward_flops_per_image:.3g}", str(images),
        format_seconds(cost.step_seconds), format_bytes(cost.memory_bytes), format_seconds(seconds),
    ]])  # fmt: skip
    echo_note("confidence: low (convolutions are a roofline without measurements)")


def _echo_models(as_json: bool) -> None:
    from planner.costs.params import count_shape_params
    from planner.costs.shapes import named_shape, named_shapes
    from planner.units import format_count

    rows = [
        (n, count_shape_params(named_shape(n)).total, r.source) for n, r in named_shapes().items()
    ]
    if as_json:
        echo_json([{"name": n, "num_params": count, "source": source} for n, count, source in rows])
        return
    echo_table(
        ["name", "parameters", "source"],
        [[n, format_count(count), source] for n, count, source in rows],
        left=(0, 2),
    )


def _echo_scores(path: Path, calibrate: Path | None, as_json: bool) -> None:
    from planner.costs.scores import calibrate_by_cluster, score_table
    from planner.costs.tables import UnreadRow, read_table
    from planner.units import format_bytes, format_seconds

    rows = read_table(path)
    measured = None
    if calibrate is not None:
        trials = read_table(calibrate)
        _echo_unread(trials)
        measured = calibrate_by_cluster(trials)
    scores = score_table(rows, measured)
    if as_json:
        echo_json({"rows": scores, "unread": [r for r in rows if isinstance(r, UnreadRow)]})
        return
    headings = ["row", "step", "lower", "upper", "memory", "fits", "MFU", "confidence"]
    echo_table(headings, [[
        s.row_id, format_seconds(s.step_seconds), format_seconds(s.step_seconds_lower),
        format_seconds(s.step_seconds_upper), format_bytes(s.memory_bytes),
        "yes" if s.fits else "no", f"{s.mfu:.1%}", s.confidence,
    ] for s in scores], left=(0, 5, 7))  # fmt: skip
    _echo_unread(rows)


def _echo_unread(rows: Sequence[TableRow | UnreadRow]) -> None:
    from planner.costs.tables import UnreadRow

    for row in rows:
        if isinstance(row, UnreadRow):
            echo_note(f"{row.row_id}: left out: {row.reason}")
