"""Faults found in other cost models; each must stay absent from ours."""

import numpy as np
import pytest

from planner.config import parse_config
from planner.costs.devices import DeviceRow, device_named
from planner.costs.links import group_bytes_per_second
from planner.costs.memory import activation_bytes_per_layer, memory_use
from planner.costs.shapes import named_shape
from planner.costs.speed import Efficiency, step_time
from planner.errors import ConfigError


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_weights_are_gathered_only_under_zero_3(workload_on, cluster_of, stage):
    w = workload_on("gpt3-175b", tensor=8, pipeline=8, data=8, shard=8, zero_stage=stage)
    slow_network = Efficiency(network=1e-3)
    assert step_time(w, cluster_of("512xa100-sxm"), slow_network).gather == 0.0


def test_gathered_bytes_fall_with_tensor_parallelism(workload_on):
    def gathered(tensor):
        w = workload_on("gpt3-175b", tensor=tensor, data=8, shard=8, zero_stage=3)
        return float(memory_use(w).gathered)

    assert gathered(8) == pytest.approx(gathered(1) / 8)


def test_the_bubbles_share_rises_with_the_stages_at_fixed_micro_batches(workload_on, cluster_of):
    shares = []
    for stages in (1, 2, 4, 8):
        w = workload_on("gpt3-13b", tensor=8, pipeline=stages, num_micro_batches=16)
        time = step_time(w, cluster_of("64xa100-sxm"))
        shares.append(float(time.pipeline / time.total))
    assert shares[0] == 0.0
    assert shares == sorted(shares)


def test_step_time_rises_with_data_parallelism_at_fixed_work_per_device(workload_on, cluster_of):
    seconds = [
        float(step_time(workload_on(data=d, num_micro_batches=1), cluster_of("64xa100-sxm")).total)
        for d in (1, 8, 16, 64)
    ]
    assert seconds == sorted(seconds)
    assert seconds[-1] > seconds[0]


@pytest.mark.parametrize("kind", ["params", "gradients", "optimizer"])
def test_every_kind_of_state_falls_with_tensor_and_pipeline_degrees_without_zero(workload_on, kind):
    shape = named_shape("gpt3-175b")
    buffers = {"gradient_buffers": 1.0}
    whole = float(getattr(memory_use(workload_on(shape, **buffers)), kind))
    split = float(getattr(memory_use(workload_on(shape, tensor=8, pipeline=8, **buffers)), kind))
    assert split == pytest.approx(whole / 64, rel=0.03)


def test_full_recomputation_keeps_inputs_and_one_live_layer(workload_on):
    w = workload_on(
        "gpt3-6.7b", recompute=2.0, micro_batch=2.0, vocab_size=0.0,
        gradient_buffers=1.0, cast_bytes=0.0,
    )  # fmt: skip
    whole, inputs = (float(x) for x in activation_bytes_per_layer(w))
    assert inputs == 2 * 2 * 2048 * 4096
    passing = 5 * inputs  # gradients of the MLP's four widths and of the block's output
    assert float(memory_use(w).activations) == pytest.approx(31 * inputs + whole + passing)


def test_activations_of_experts_grow_with_the_experts_per_token(workload_on):
    one, two = (
        float(activation_bytes_per_layer(workload_on("mixtral-8x7b", experts_per_token=k))[0])
        for k in (1, 2)
    )
    assert two > 1.3 * one


def test_a_group_over_two_nodes_gets_the_nodes_network_and_a_strided_ring_its_share(cluster_of):
    cluster = cluster_of("16xa100-sxm")
    link, network = 300e9, 25e9
    assert group_bytes_per_second(8.0, 1.0, cluster) == link
    assert group_bytes_per_second(16.0, 1.0, cluster) == 8 * network
    assert group_bytes_per_second(2.0, 8.0, cluster) == network
    assert group_bytes_per_second(4.0, 4.0, cluster) == 2 * network


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory_bytes", 80.0),
        ("memory_bytes", 8e13),
        ("bf16", 312.0),
        ("scale_up_bytes_per_second", 300.0),
    ],
    ids=["gigabytes for bytes", "unlimited memory", "teraflops for flops", "gigabytes per second"],
)
def test_the_catalogue_refuses_values_that_hardware_cannot_have(field, value):
    row = {
        "bf16": 3.12e14, "achievable_fraction": 0.87, "memory_bytes": 8.5e10,
        "memory_bytes_per_second": 2e12, "scale_up_bytes_per_second": 3e11,
        "scale_out_bytes_per_second": 2.5e10, "confidence": "datasheet", "source": "a", "date": "b",
    }  # fmt: skip
    parse_config(row, DeviceRow)
    with pytest.raises(ConfigError, match=field):
        parse_config(row | {field: value}, DeviceRow)


def test_an_a100_has_no_fp8():
    assert "fp8" not in device_named("a100-sxm").peaks


def test_misaligned_heads_cost_time(workload_on, cluster_of):
    """BigScience: 96 heads of 138 channels ran 40 % slower than 64 heads of 208."""
    cluster = cluster_of("384xa100-sxm")
    peaks = cluster.device.peaks
    layout = {"tensor": 8, "pipeline": 12, "data": 4, "micro_batch": 2.0, "num_micro_batches": 256,
              "recompute": 2.0, "flash": 0.0, "vector_flops_per_second": peaks["fp32"],
              "peak_flops_per_second": peaks["fp16"], "num_layers": 84, "d_model": 13312}  # fmt: skip
    good = workload_on("gpt3-175b", **layout, num_heads=64, head_dim=208, query_width=13312)
    bad = workload_on("gpt3-175b", **layout, num_heads=96, head_dim=138, query_width=13248)
    ratio = float(step_time(bad, cluster).total / step_time(good, cluster).total)
    assert 1.15 < ratio < 1.6


def test_misaligned_widths_cost_time(workload_on, cluster_of):
    aligned = step_time(workload_on(d_model=4096, dense_d_ff=16384), cluster_of("8xa100-sxm"))
    narrow = step_time(workload_on(d_model=4096, dense_d_ff=16384 + 8), cluster_of("8xa100-sxm"))
    assert np.all(narrow.matmul > aligned.matmul * 1.002)
