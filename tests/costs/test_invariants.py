"""What must hold of every estimate, whatever the constants."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.costs import estimate
from planner.costs.candidates import LayoutProblem
from planner.costs.layouts import search_layouts
from planner.costs.memory import memory_use
from planner.costs.params import count_shape_params
from planner.costs.shapes import ModelShape, named_shape, named_shapes
from planner.costs.speed import step_time
from planner.errors import InfeasibleError
from planner.trial import (
    BatchConfig,
    ModelConfig,
    ParallelLayout,
    PrecisionConfig,
    TrainConfig,
    TrialConfig,
)

CHECKED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DEGREES = st.sampled_from([1, 2, 4, 8])
LAYOUTS = st.fixed_dictionaries(
    {
        "tensor": DEGREES,
        "pipeline": DEGREES,
        "context": st.sampled_from([1, 2]),
        "data": st.sampled_from([8, 16]),
        "micro_batch": st.sampled_from([1, 2, 4]),
        "num_micro_batches": st.sampled_from([1, 4, 16]),
        "sequence_parallel": st.sampled_from([0.0, 1.0]),
    }
)


@settings(max_examples=20, deadline=None, suppress_health_check=CHECKED.suppress_health_check)
@given(st.integers(1, 400), st.sampled_from(["fp32", "bf16", "fp8"]), st.sampled_from([1, 2]))
def test_twice_the_tokens_take_twice_the_flops_and_the_time(cluster_of, steps, precision, context):
    def cost(num_steps):
        config = TrialConfig(
            model=ModelConfig(num_layers=4, d_model=512, sequence_length=1024),
            train=TrainConfig(tokens=num_steps * 64 * 1024),
            batch=BatchConfig(sequences_per_step=64),
            layout=ParallelLayout(data_parallel=8, context_parallel=context),
            precision=PrecisionConfig(compute=precision),
        )
        return estimate(config, cluster_of("16xh100-sxm"))

    one, two = cost(steps), cost(2 * steps)
    assert two.train_flops == 2 * one.train_flops
    assert two.train_seconds == pytest.approx(2 * one.train_seconds)
    weak = {"fp8": precision == "fp8", "context parallelism": context > 1}
    assert (one.confidence == "low") == any(weak.values())
    assert all(name in one.confidence_reason for name, holds in weak.items() if holds)


@CHECKED
@given(LAYOUTS)
def test_more_zero_never_needs_more_state_memory(workload_on, layout):
    states = [
        float(memory_use(workload_on(**layout, shard=8, zero_stage=stage)).states)
        for stage in range(4)
    ]
    assert states == sorted(states, reverse=True)
    assert states[3] < states[0]


@CHECKED
@given(LAYOUTS, st.sampled_from([0.0, 1.0]))
def test_recomputing_more_never_takes_less_time_or_more_activation_memory(
    workload_on, cluster_of, layout, flash
):
    cluster = cluster_of("512xh100-sxm")
    modes = [workload_on(**layout, flash=flash, recompute=mode) for mode in (0.0, 1.0, 2.0)]
    seconds = [float(step_time(w, cluster).total) for w in modes]
    kept = [float(memory_use(w).activations) for w in modes]
    assert seconds[0] <= seconds[1] * (1 + 1e-12)
    assert seconds[0] <= seconds[2] * (1 + 1e-12)
    assert kept[1] <= kept[0] * (1 + 1e-12)
    assert kept[2] <= kept[0] * 1.0001 + float(memory_use(modes[0]).activations) / 8


@CHECKED
@given(LAYOUTS, st.sampled_from([0, 1, 2, 3]))
def test_the_parts_of_time_and_memory_are_not_negative_and_sum_to_the_totals(
    workload_on, cluster_of, layout, stage
):
    shard = layout["data"] * layout["context"]
    w = workload_on(**layout, shard=shard, zero_stage=stage)
    time = step_time(w, cluster_of("1024xa100-sxm"))
    parts = [float(getattr(time, name)) for name in type(time).__slots__]
    assert min(parts) >= -1e-9
    assert sum(parts) == pytest.approx(float(time.total))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_gradients_are_reduced_over_the_workers_of_a_context_group_too(
    workload_on, cluster_of, stage
):
    cluster = cluster_of("8xh100-sxm")
    reductions = [
        float(step_time(workload_on(**degrees, zero_stage=stage, overlap=0.0), cluster).data)
        for degrees in ({"data": 8}, {"context": 8}, {"data": 2, "context": 4})
    ]
    assert reductions[0] > 0
    assert reductions == pytest.approx([reductions[0]] * 3)


@CHECKED
@given(
    st.integers(1, 40),
    st.integers(1, 32),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 4, 8]),
)
def test_groups_of_parameters_sum_to_the_total(layers, heads, share, gated, bias, experts):
    shape = ModelShape(
        num_layers=layers, d_model=64 * heads, num_heads=heads, num_kv_heads=max(1, heads // share),
        head_dim=64, d_ff=256, mlp_matrices=3 if gated else 2, vocab_size=1000,
        sequence_length=128, linear_bias=bias, num_experts=experts,
        experts_per_token=min(2, experts),
    )  # fmt: skip
    count = count_shape_params(shape)
    groups = ("token_embedding", "position_embedding", "attention", "mlp", "experts", "router",
              "norms", "convolutions", "head", "other")  # fmt: skip
    assert sum(getattr(count, name) for name in groups) == count.total
    assert count.active <= count.total
    assert 0 < count.non_embedding < count.total


@CHECKED
@given(st.sampled_from([8, 16, 32, 64]), st.sampled_from([64, 128, 256]))
def test_more_devices_never_slow_the_best_layout_of_a_divisible_batch(cluster_of, devices, batch):
    def best(text):
        problem = LayoutProblem(
            shape=named_shape("llama-3-8b"), cluster=cluster_of(text), sequences_per_step=batch
        )
        return search_layouts(problem, num_best=1).best[0].step_seconds

    assert best(f"{2 * devices}xh100-sxm") <= best(f"{devices}xh100-sxm")


@CHECKED
@given(
    st.sampled_from(["gpt2-xl", "llama-3-8b", "mixtral-8x7b", "t5-large", "vit-l16"]),
    st.sampled_from(["8xa100-sxm-40gb", "16xh100-sxm", "8xl4", "72xgb200"]),
)
def test_no_layout_is_both_offered_and_over_memory(cluster_of, name, text):
    cluster = cluster_of(text)
    problem = LayoutProblem(
        shape=named_shape(name, sequence_length=None), cluster=cluster,
        sequences_per_step=8 * cluster.num_devices,
    )  # fmt: skip
    try:
        found = search_layouts(problem, num_best=20)
    except InfeasibleError:
        return
    for layout in found.best:
        assert layout.memory_bytes <= cluster.usable_memory_bytes
        assert layout.workload.num_devices == cluster.num_devices
    assert found.num_feasible + sum(n for _, n in found.rejected) == found.num_candidates


def test_arrays_and_single_configurations_give_the_same_numbers(workload_on, cluster_of):
    cluster = cluster_of("64xh100-sxm")
    degrees = [1, 2, 4, 8]
    together = workload_on(tensor=np.array(degrees, dtype=float), data=8.0, micro_batch=2.0)
    alone = [workload_on(tensor=float(t), data=8.0, micro_batch=2.0) for t in degrees]
    assert np.allclose(
        step_time(together, cluster).total, [step_time(w, cluster).total for w in alone]
    )
    assert np.allclose(memory_use(together).total, [memory_use(w).total for w in alone])


def test_every_named_shape_has_positive_flops_and_parameters():
    for name in named_shapes():
        assert count_shape_params(named_shape(name)).total > 0


def test_frozen_weights_save_a_third_of_the_products_and_all_states_but_themselves(
    workload_on, cluster_of
):
    cluster = cluster_of("8xh100-sxm")
    trained, adapters = workload_on(vocab_size=0.0), workload_on(vocab_size=0.0, frozen=1.0)
    assert step_time(adapters, cluster).matmul == pytest.approx(
        step_time(trained, cluster).matmul * 2 / 3
    )
    assert memory_use(adapters).states == pytest.approx(memory_use(trained).params)
