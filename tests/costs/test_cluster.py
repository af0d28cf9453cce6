import pytest

from planner.config import parse_config
from planner.costs import ClusterConfig, known_devices, parse_cluster, resolve_cluster
from planner.costs.cluster import DeviceOverrides, OwnedHardware
from planner.costs.energy import watts_per_device
from planner.costs.machine import examine_machine, measure_core_flops_per_second
from planner.errors import ConfigError

REQUIRED = [
    "cpu", "v100-sxm", "a100-sxm", "h100-sxm", "h200-sxm", "b200", "gb200", "b300", "gb300", "l4",
    "l40s", "a10", "t4", "rtx-4090", "mi250x", "mi300x", "tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e",
]  # fmt: skip


def test_the_catalogue_has_every_promised_device_with_source_and_date():
    devices = known_devices()
    for name in REQUIRED:
        device = devices[name]
        assert device.source
        assert device.date
        assert device.confidence in ("datasheet", "measured", "recalled")
        assert device.usd_per_device_hour is None or device.price_date


def test_dense_peaks_never_rise_with_precision_bits():
    for device in known_devices().values():
        rates = [device.peaks[p] for p in ("fp32", "bf16", "fp8", "fp4") if p in device.peaks]
        assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("text", "nodes", "per_node"),
    [("64xh100-sxm", 8, 8), ("4xh100-sxm", 1, 4), ("16x4xa100-sxm", 16, 4), ("72xgb200", 18, 4)],
)
def test_clusters_are_read_as_people_write_them(text, nodes, per_node):
    config = parse_cluster(text)
    assert (config.num_nodes, config.devices_per_node) == (nodes, per_node)
    assert str(resolve_cluster(config)) == text


@pytest.mark.parametrize(
    "text", ["0xh100-sxm", "h100 sxm", "-8xh100-sxm", "12xh100-sxm", "8xfoo", ""]
)
def test_clusters_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError):
        parse_cluster(text)


def test_a_cpu_clusters_devices_are_the_usable_cores():
    import os

    cluster = resolve_cluster(ClusterConfig())
    assert cluster.num_devices == len(os.sched_getaffinity(0))
    assert cluster.usd_per_device_hour is None


def test_users_override_any_field_of_a_device():
    config = ClusterConfig(
        device="h100-sxm",
        device_overrides=DeviceOverrides(bf16=8e14, scale_out_bytes_per_second=1e10),
    )
    device = resolve_cluster(config).device
    assert device.peaks["bf16"] == 8e14
    assert device.peaks["fp8"] == 1.979e15
    assert device.scale_out_bytes_per_second == 1e10


def test_a_lower_power_limit_lowers_the_achievable_rate():
    capped = ClusterConfig(device="h100-sxm", device_overrides=DeviceOverrides(power_watts=350.0))
    full = resolve_cluster(ClusterConfig(device="h100-sxm")).device.achievable_fraction
    assert resolve_cluster(capped).device.achievable_fraction == pytest.approx(full * 0.5**0.5)


@pytest.mark.parametrize("name", ["cpu", "tpu-v5p"])
def test_the_power_of_a_device_that_has_none_in_the_catalogue_changes_no_rate(name):
    told = ClusterConfig(device=name, device_overrides=DeviceOverrides(power_watts=15.0))
    device, plain = resolve_cluster(told).device, resolve_cluster(ClusterConfig(device=name)).device
    assert device.power_watts == 15.0
    assert device.achievable_fraction == plain.achievable_fraction


def test_overrides_in_the_wrong_unit_are_refused():
    config = ClusterConfig(device="h100-sxm", device_overrides=DeviceOverrides(memory_bytes=80.0))
    with pytest.raises(ConfigError, match="memory_bytes"):
        resolve_cluster(config)


@pytest.mark.parametrize("field", ["num_nodes", "devices_per_node", "usd_per_device_hour", "pue"])
def test_sizes_and_prices_must_be_positive(field):
    with pytest.raises(ConfigError, match=field):
        parse_config({"device": "h100-sxm", field: 0}, ClusterConfig)


def test_owned_hardware_has_a_price_per_hour():
    owned = OwnedHardware(usd_per_device=35000.0, usd_per_kwh=0.1)
    cluster = resolve_cluster(ClusterConfig(device="h100-sxm", owned=owned))
    hours = 4.0 * 8766.0 * 0.7
    assert cluster.usd_per_device_hour == pytest.approx(35000 / hours + 0.875 * 1.1 * 0.1)
    assert cluster.price_kind == "owned"
    assert cluster.price_date is None  # the catalogue's date is of the catalogue's price


def test_power_lies_between_the_metered_bounds():
    """MLPerf v4.0: 856-900 W per GPU of 8 x H100 at full load, at the AC meter."""
    assert 856 <= watts_per_device(700.0, 1.0) <= 900
    assert 636 <= watts_per_device(700.0, 0.7) <= 797


def test_the_machine_is_examined():
    machine = examine_machine()
    assert machine.num_cores >= 1
    assert machine.memory_bytes > machine.free_memory_bytes > 0
    assert 1e9 < measure_core_flops_per_second(0.02) < 1e13
