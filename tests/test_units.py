"""What people type is read exactly or refused; what they read is short."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import ConfigError
from planner.units import (
    format_bytes,
    format_count,
    format_flops,
    format_seconds,
    format_usd,
    parse_budget,
    parse_count,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500gpuh", {"device_hours": 500}),
        ("500 gpu-hours", {"device_hours": 500}),
        ("500 device-hours", {"device_hours": 500}),
        ("1.5k gpu-hours", {"device_hours": 1500}),
        ("1,500 gpu-hours", {"device_hours": 1500}),
        ("20 gpu-days", {"device_hours": 480}),
        ("1e21 flops", {"flops": 1e21}),
        ("300 EFLOP", {"flops": 3e20}),
        ("10 PFLOP/s-days", {"flops": 8.64e20}),
        ("2000usd", {"usd": 2000}),
        ("$2.5k", {"usd": 2500}),
        ("12 h", {"seconds": 43200}),
        ("5 kwh", {"kwh": 5}),
        ("20 gpuh, 40usd", {"device_hours": 20, "usd": 40}),
    ],
)
def test_budgets_are_read_in_every_customary_unit(text, expected):
    assert parse_budget(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["1e21", "lots", "", "5 parsecs", "-3 usd", "3 usd, 4 usd"])
def test_a_budget_without_a_known_unit_is_refused(text):
    with pytest.raises(ConfigError):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("12h", 43200), ("1d12h", 129600), ("2.5 days", 216000), ("1 week", 604800)],
)
def test_durations_are_read(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["1h30", "90", "", "three h", "5 lightyears"])
def test_a_duration_needs_a_unit_for_every_part(text):
    with pytest.raises(ConfigError):
        parse_seconds(text)


@pytest.mark.parametrize(("text", "count"), [("124M", 124e6), ("1.3B", 1.3e9), ("20e9", 20e9)])
def test_counts_are_read(text, count):
    assert parse_count(text) == count


@given(st.floats(min_value=1e-6, max_value=1e30))
def test_every_amount_has_a_short_form(value):
    for form in (format_bytes, format_count, format_flops, format_seconds, format_usd):
        assert 0 < len(form(value)) <= 48


@given(st.floats(min_value=1e-3, max_value=1e25))
def test_flops_written_with_a_unit_are_read_back(value):
    assert parse_budget(f"{value!r} flops") == {"flops": value}
