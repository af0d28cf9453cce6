"""Whatever the layout, the same is learnt: losses over ten steps beside one process's."""

from __future__ import annotations

import pytest

LAYOUTS = {
    2: {
        "DDP": {"data_parallel": 2},
        "ZeRO-1": {"shard_parallel": 2, "zero_stage": 1},
        "ZeRO-2": {"shard_parallel": 2, "zero_stage": 2},
        "ZeRO-3": {"shard_parallel": 2},
        "ZeRO-3 in host memory": {"shard_parallel": 2, "cpu_offload": True},
        "TP": {"tensor_parallel": 2},
        "TP + SP": {"tensor_parallel": 2, "sequence_parallel": True},
        "PP gpipe": {"pipeline_parallel": 2, "pipeline_schedule": "gpipe"},
        "PP 1f1b": {"pipeline_parallel": 2},
        "PP interleaved": {
            "pipeline_parallel": 2, "virtual_pipeline": 2, "pipeline_schedule": "interleaved",
        },
        "PP interleaved-zero-bubble": {
            "pipeline_parallel": 2, "virtual_pipeline": 2,
            "pipeline_schedule": "interleaved-zero-bubble",
        },
        "PP zbv-zero-bubble": {
            "pipeline_parallel": 2, "virtual_pipeline": 2, "pipeline_schedule": "zbv-zero-bubble",
        },
        "PP dualpipe-v": {
            "pipeline_parallel": 2, "virtual_pipeline": 2, "pipeline_schedule": "dualpipe-v",
        },
    },
    4: {
        "HSDP 2x2": {"data_parallel": 2, "shard_parallel": 2},
        "ZeRO-3 x TP + SP": {
            "shard_parallel": 2, "tensor_parallel": 2, "sequence_parallel": True,
        },
        "PP x ZeRO-2": {"pipeline_parallel": 2, "shard_parallel": 2},
        "PP x ZeRO-1": {"pipeline_parallel": 2, "shard_parallel": 2, "zero_stage": 1},
    },
    8: {"PP x TP x DP": {"pipeline_parallel": 2, "tensor_parallel": 2, "data_parallel": 2}},
}  # fmt: skip

MODELS = {
    "gpt2": {"norm": "layernorm", "position": "learned", "bias": True},
    "llama": {"mlp": "gated", "num_kv_heads": 2, "tied_head": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_every_layout_learns_what_one_process_learns(world_size, settings, gang, losses):
    layouts = LAYOUTS[world_size]
    (alone,) = gang([{"config": settings()}], 1)
    outcomes = gang(
        [{"config": settings(layout=layout)} for layout in layouts.values()], world_size
    )
    expected = losses(alone)
    found = {name: losses(outcome) for name, outcome in zip(layouts, outcomes, strict=True)}
    assert len(expected) == 10
    for name, values in found.items():
        assert values == pytest.approx(expected, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_other_models_learn_the_same_in_every_kind_of_layout(kind, settings, gang, losses):
    model = MODELS[kind]
    names = ("DDP", "ZeRO-3", "TP + SP", "PP interleaved")
    (alone,) = gang([{"config": settings(model=model)}], 1)
    orders = [{"config": settings(model=model, layout=LAYOUTS[2][name])} for name in names]
    for name, outcome in zip(names, gang(orders, 2), strict=True):
        assert losses(outcome) == pytest.approx(losses(alone), abs=1e-5), name


@pytest.mark.slow
def test_bf16_layouts_stay_within_2e_2_of_one_process(settings, gang, losses):
    bf16 = {"compute": "bf16"}
    names = ("DDP", "ZeRO-3", "TP + SP", "PP 1f1b")
    (alone,) = gang([{"config": settings(precision=bf16)}], 1)
    orders = [{"config": settings(precision=bf16, layout=LAYOUTS[2][name])} for name in names]
    for name, outcome in zip(names, gang(orders, 2), strict=True):
        assert losses(outcome) == pytest.approx(losses(alone), abs=2e-2), name
