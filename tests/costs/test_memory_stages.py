"""What each pipeline stage, expert group and library holds at the peak."""

from dataclasses import replace

import pytest

from planner.costs.memory import (
    GPU_MEMORY,
    activation_bytes_per_layer,
    block_params_per_device,
    memory_use,
)
from planner.costs.scores import memory_constants_of
from planner.costs.shapes import ModelShape
from planner.costs.tables import table_row

LAST = replace(GPU_MEMORY, last_stage_only=True)
MIXTURE = ModelShape(
    num_layers=12,
    d_model=512,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    d_ff=2048,
    mlp_matrices=2,
    vocab_size=50304,
    sequence_length=1024,
    num_experts=8,
    experts_per_token=2,
)


def activations(w, constants=GPU_MEMORY):
    return float(memory_use(w, constants).activations)


@pytest.mark.parametrize(
    ("chunks", "first", "last"), [(1, 4, 1), (2, 11 / 2, 5 / 2), (4, 19 / 4, 13 / 4)]
)
def test_the_interleaved_schedule_holds_its_warm_up_and_one_chunk(workload_on, chunks, first, last):
    layout = {
        "pipeline": 4.0,
        "num_micro_batches": 64.0,
        "gradient_buffers": 1.0,
        "cast_bytes": 0.0,
    }
    layout |= {"vocab_size": 1e6}  # the loss is the fullest moment of the last stage
    w = workload_on("llama-3-8b", virtual=float(chunks), **layout)
    each = 8 * float(activation_bytes_per_layer(w)[0])
    head = 2 * 2 * 4096 * 8192
    assert activations(w, LAST) == pytest.approx(last * each + head)
    small = replace(w, vocab_size=16.0)
    assert activations(small) == pytest.approx(first * each, rel=0.2)
    assert activations(small) > first * each


def test_the_last_stage_holds_no_more_than_the_fullest(workload_on):
    for virtual in (1.0, 2.0, 4.0):
        w = workload_on(pipeline=8.0, num_micro_batches=32.0, virtual=virtual)
        assert memory_use(w, LAST).total < memory_use(w).total
    alone = workload_on(num_micro_batches=4.0)
    assert memory_use(alone, LAST).total == memory_use(alone).total


@pytest.mark.parametrize(
    ("layout", "ways"),
    [
        ({"tensor": 4.0, "expert": 2.0, "data": 2.0}, 8),
        ({"tensor": 4.0, "expert": 2.0, "data": 1.0}, 4),
        ({"tensor": 1.0, "expert": 2.0, "context": 2.0}, 2),
        ({"tensor": 2.0, "expert": 8.0, "data": 16.0}, 16),
    ],
)
def test_experts_are_split_over_no_more_devices_than_share_a_stage(workload_on, layout, ways):
    routed = block_params_per_device(workload_on(MIXTURE, **layout))[1]
    assert float(routed) == 8 * 2 * 512 * 2048 / ways


def test_weights_inside_the_experts_keep_one_more_width_and_one_input_fewer(workload_on):
    plain = workload_on(MIXTURE, micro_batch=4.0)
    inside = replace(plain, weighted_inner=1.0)
    more = activation_bytes_per_layer(inside)[0] - activation_bytes_per_layer(plain)[0]
    assert float(more) == 4 * 1024 * 2 * 2 * (2048 - 512)


def test_inputs_of_experts_are_gathered_over_the_devices_of_an_expert(workload_on):
    layout = {"tensor": 4.0, "sequence_parallel": 1.0, "weighted_inner": 1.0, "expert": 2.0}
    wide = workload_on(MIXTURE, data=2.0, **layout)  # an expert on four devices
    narrow = workload_on(MIXTURE, data=1.0, **layout)  # on two
    more = activation_bytes_per_layer(wide)[0] - activation_bytes_per_layer(narrow)[0]
    assert float(more) == 1024 * 2 * 2 * 512 * (1 - 1 / 2)


def test_a_fused_gate_keeps_three_widths_of_four(workload_on):
    plain = workload_on("llama-3-8b")
    fewer = (
        activation_bytes_per_layer(plain)[0]
        - activation_bytes_per_layer(replace(plain, fused_gate=1.0))[0]
    )
    assert float(fewer) == 8192 * 2 * 14336


def test_a_sharded_pipeline_sums_whole_gradients_as_they_are_reduced(workload_on):
    layout = {"pipeline": 8.0, "shard": 8.0, "data": 8.0, "zero_stage": 3.0, "tensor": 8.0}
    w = workload_on("llama-3-8b", num_micro_batches=32.0, **layout)
    stage = 4 * sum(map(float, block_params_per_device(w))) + 128256 * 4096 / 8
    assert float(memory_use(w).gathered) == pytest.approx(stage * (2 + 4))
    halves = replace(w, reduce_bytes=2.0)
    assert float(memory_use(halves).gathered) == pytest.approx(stage * (2 + 2))


GPT = {
    "layers": "12", "hidden": "512", "heads": "8", "seq": "1024", "gpu": "A100-SXM", "gpus_per_node": "8",
    "gbs": "32", "mbs": "4", "precision": "bf16", "recompute": "none", "attn": "flash(TE)",
    "framework": "Megatron-Core CI", "mem_kind": "torch max_memory_allocated (rank logged)",
    "notes": "deterministic-mode=True",
}  # fmt: skip
EXPERTS = {"n_experts": "4", "topk": "1", "seq_par": "1", "ep": "2"}
GPT_7B = {
    "layers": "32", "hidden": "4096", "heads": "32", "kv_heads": "8", "seq": "8192", "vocab": "131073", "tied_emb": "0",
    "gbs": "8", "zero": "1",
}  # fmt: skip
BERT = {"layers": "24", "hidden": "1024", "heads": "16", "seq": "512", "attn": "unfused"}


@pytest.mark.parametrize(
    ("changes", "gib"),
    [
        ({"pp": "4"}, 2.0444),
        ({"pp": "4", "vpp": "3"}, 2.4696),
        ({"pp": "2", "attn": "local"}, 3.3834),
        ({"pp": "4", "attn": "local"}, 2.5599),
        ({"tp": "2", "pp": "2"}, 1.3130),
        ({"tp": "2", "pp": "2", "cp": "2", "seq_par": "1", "notes": ""}, 0.7999),
        ({"tp": "4", "pp": "2", "zero": "1", "notes": ""}, 0.7220),
        ({"tp": "4", "pp": "2", "attn": "unfused"} | EXPERTS, 1.1150),
        (BERT | {"tp": "8", "pp": "8", "precision": "fp16"}, 0.4528),
        (GPT_7B | {"mbs": "1", "pp": "4", "vpp": "8"}, 56.335),
        (GPT_7B | {"mbs": "2", "tp": "4"}, 54.192),
    ],
    ids=["pp4", "interleaved", "scores", "scores pp4", "tp2 pp2", "context", "tp4 pp2", "experts", "bert", "7B pp4", "7B tp4"],
)  # fmt: skip
def test_megatron_reports_the_memory_of_its_last_rank(changes, gib):
    """Peaks that Megatron-LM's continuous integration records (tests/functional_tests, `mem-max-allocated-bytes`)."""
    row = table_row(GPT | changes)
    found = float(memory_use(row.workload, memory_constants_of(row)).total) / 2**30
    assert found == pytest.approx(gib, rel=0.05)


def test_experts_that_exceed_a_node_have_a_replica_for_each_group():
    row = table_row(
        GPT | EXPERTS | {"tp": "2", "pp": "4", "ep": "16", "n_experts": "64", "gbs": "64"}
    )
    assert row.workload.data == 16
    assert table_row(GPT | EXPERTS | {"tp": "4", "pp": "2"}).workload.data == 1


def test_workspaces_count_only_where_the_allocators_figure_was_read():
    other = GPT | {"mem_kind": "nvidia-smi"}
    assert table_row(other).workload.buffer_bytes == 0
    mib = {
        "A100-SXM": 64 + 4,
        "H100-SXM": 64 + 32,
        "GB200": 64 + 32,
    }
    for gpu, expected in mib.items():
        assert table_row(GPT | {"gpu": gpu}).workload.buffer_bytes == expected * 2**20
    assert table_row(GPT | {"notes": ""}).workload.buffer_bytes == (16.25 + 4) * 2**20


@pytest.mark.parametrize(
    ("framework", "each"), [("Composer FSDP", 2), ("torchtitan", 12), ("other", 8)]
)
def test_a_loss_keeps_what_its_frameworks_kernel_keeps(framework, each):
    row = table_row(GPT | {"fsdp": "1", "framework": framework, "mem_kind": ""})
    w = replace(row.workload, vocab_size=1e6)  # the loss is the fullest moment
    assert float(memory_use(w).logits) == 4 * 1024 * 1e6 * (2 + each)
