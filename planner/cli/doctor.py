"""`planner doctor`: what this machine has, and the hardware catalogue."""

from __future__ import annotations

from typing import Any

import click

from planner.cli.output import echo_json, echo_note, echo_table

__all__ = ["command"]


@click.command()
@click.option("--devices", is_flag=True, help="The hardware catalogue instead.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(devices: bool, as_json: bool) -> None:
    """Show what was detected on this machine, or the hardware catalogue.

    \b
    Examples:
      planner doctor
      planner doctor --devices
    """  # noqa: D301
    if devices:
        _echo_devices(as_json)
        return
    from planner.costs.machine import examine_machine

    found = examine_machine()
    if as_json:
        echo_json(found)
        return
    from planner.units import format_bytes, format_rate

    rows = [
        ["system", found.system],
        ["python", found.python],
        ["planner", found.version],
        ["processor", found.processor],
        ["usable cores", str(found.num_cores)],
        [
            "memory",
            f"{format_bytes(found.memory_bytes)}, {format_bytes(found.free_memory_bytes)} free",
        ],
        ["fp32 product, one core", f"{format_rate(found.core_flops_per_second)} measured"],
        ["accelerators", ", ".join(found.accelerators) or "none"],
        *([name, state] for name, state in found.packages.items()),
    ]
    echo_table(["what", "found"], rows, left=(0, 1))
    for problem in found.problems:
        echo_note(f"note: {problem}")


def _echo_devices(as_json: bool) -> None:
    from planner.costs.devices import known_devices
    from planner.units import format_bytes, format_rate

    devices = known_devices()
    if as_json:
        echo_json(devices)
        return

    def peak(peaks: dict[str, float], *names: str) -> str:
        return next((format_rate(peaks[n]) for n in names if n in peaks), "-")

    def cells(d: Any) -> list[str]:
        power = "-" if d.power_watts is None else f"{d.power_watts:g} W"
        price = "-" if d.usd_per_device_hour is None else f"${d.usd_per_device_hour:g}"
        return [
            d.name, peak(d.peaks, "bf16", "fp16"), peak(d.peaks, "fp8"),
            f"{d.achievable_fraction:.0%}", format_bytes(d.memory_bytes),
            f"{d.memory_bytes_per_second / 1e9:g}", f"{d.scale_up_bytes_per_second / 1e9:g}",
            f"{d.scale_out_bytes_per_second / 1e9:.3g}", power, price, d.confidence, d.date,
        ]  # fmt: skip

    headings = [
        "device",
        "bf16",
        "fp8",
        "achievable",
        "memory",
        "GB/s",
        "links GB/s",
        "network GB/s",
        "power",
        "USD/h",
        "confidence",
        "date",
    ]
    echo_table(headings, [cells(d) for d in devices.values()], left=(0, 10, 11))
