"""Where the time goes, what is drawn, and what is written for TensorBoard."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from planner.engine import train
from planner.engine.power import PackageEnergy, PowerMeter, PowerSampler, rapl_joules
from planner.engine.prefetch import Prefetcher
from planner.engine.timers import Timers
from planner.errors import ConfigError


def test_parts_of_a_step_are_no_more_than_the_step(small):
    result = train(small())
    parts = (result.data_wait_seconds, result.optimizer_seconds)
    assert min(parts) > 0
    assert sum(parts) < result.train_seconds
    assert result.communication_seconds == 0.0
    assert result.compile_seconds is None
    assert 0 < result.utilisation_fraction <= 1
    assert result.gradient_norm > 0


def test_seconds_of_former_attempts_are_counted_on(small, tmp_path):
    first = train(small(), checkpoint_dir=tmp_path, on_metrics=lambda _: False)
    second = train(small(), checkpoint_dir=tmp_path)
    assert second.optimizer_seconds > first.optimizer_seconds > 0


def test_timers_count_only_while_they_run():
    timers = Timers(torch.device("cpu"))
    with timers.part("optimizer"):
        time.sleep(0.002)
    assert timers.seconds()["optimizer"] == 0.0
    timers.is_running = True
    with timers.part("optimizer"):
        time.sleep(0.002)
    assert timers.seconds()["optimizer"] >= 0.002


def test_reading_ahead_changes_nothing_that_is_learnt(small):
    ramp = {"ramp_start_sequences": 2, "ramp_fraction": 0.5}  # batches grow past what was foreseen
    ahead, at_once = (
        train(small(batch=ramp, execution={"prefetch": prefetch})) for prefetch in (True, False)
    )
    assert (ahead.val_loss, ahead.train_loss) == (at_once.val_loss, at_once.train_loss)


def test_a_batch_read_ahead_is_used_and_another_one_dropped():
    read = []

    def batch(first, number):
        read.append((first, number))
        return torch.tensor([first]), torch.tensor([number])

    prefetcher = Prefetcher(batch)
    assert prefetcher.get((0, 2), (2, 2))[0].item() == 0
    assert prefetcher.get((2, 2), (4, 2))[0].item() == 2
    assert prefetcher.get((4, 4), None)[1].item() == 4
    prefetcher.close()
    assert read.count((2, 2)) == 1
    assert (4, 4) in read


def test_what_goes_wrong_while_reading_ahead_is_raised_where_the_batch_is_used():
    def fail_later(first, number):
        if first:
            raise ConfigError("the file went away")
        return torch.zeros(1), torch.zeros(1)

    prefetcher = Prefetcher(fail_later)
    prefetcher.get((0, 1), (1, 1))
    with pytest.raises(ConfigError, match="went away"):
        prefetcher.get((1, 1), None)
    prefetcher.close()


def write_package(root, number, microjoules):
    zone = root / f"intel-rapl:{number}"
    zone.mkdir(exist_ok=True)
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")


def test_energy_counters_of_all_packages_are_read_in_joules(tmp_path):
    assert rapl_joules(tmp_path) is None
    write_package(tmp_path, 0, 5_000_000)
    write_package(tmp_path, 1, 7_500_000)
    assert rapl_joules(tmp_path) == [(5.0, 262143.32885), (7.5, 262143.32885)]


def test_power_of_processors_survives_a_counter_that_wraps(tmp_path, monkeypatch):
    write_package(tmp_path, 0, 262_143_000_000)
    monkeypatch.setattr("planner.engine.power._RAPL", tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    start = time.perf_counter()
    meter = PowerMeter(torch.device("cpu"), 1)
    time.sleep(0.01)
    write_package(tmp_path, 0, 671_150)  # a joule further
    power = meter.power()
    assert power.source == "rapl"
    assert 1.0 / (time.perf_counter() - start) <= power.watts <= 1.0 / 0.01


def test_energy_counts_on_over_a_counter_that_wraps_again_and_again(tmp_path):
    write_package(tmp_path, 0, 0)
    energy = PackageEnergy(tmp_path, rapl_joules(tmp_path))
    for kilojoules in (200, 100, 250):  # the counter holds 262
        write_package(tmp_path, 0, kilojoules * 10**9)
        found = energy.joules()
    energy.close()
    assert found == pytest.approx(262_143.32885 + 250_000)


def test_a_sampler_reads_until_it_is_closed():
    read = []
    sampler = PowerSampler(lambda: read.append(None) or (300.0, 0.5))
    while sampler.means() is None:
        time.sleep(0.001)
    sampler.close()
    assert sampler.means() == (300.0, 0.5)
    assert read


def test_tensorboard_events_hold_the_numbers_of_every_report(small, tmp_path):
    config = small(train={"num_validations": 2}, execution={"tensorboard": True})
    result = train(config, checkpoint_dir=tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = events.Scalars("val_loss")
    assert [event.step for event in losses] == [5, 10]
    assert losses[-1].value == pytest.approx(result.val_loss)
    assert {"tokens_per_second", "gradient_norm", "peak_memory_bytes"} <= set(
        events.Tags()["scalars"]
    )


def test_tensorboard_without_its_package_or_a_folder_is_refused(small, tmp_path, monkeypatch):
    config = small(execution={"tensorboard": True})
    with pytest.raises(ConfigError, match="needs a folder"):
        train(config)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name)
    )
    with pytest.raises(ConfigError, match="needs the package tensorboard"):
        train(config, checkpoint_dir=tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to measure")
def test_the_benchmark_of_cuda_devices_says_that_there_is_none():
    script = Path(__file__).parents[2] / "benchmarks" / "engine_cuda.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("no CUDA device: nothing was measured.")
    assert done.stdout == ""
