"""Whatever the layout, the same is learnt: losses over ten steps beside one process's."""

from __future__ import annotations

import pytest

from planner.engine import train

LAYOUTS = {
    2: {
        "DDP": {"data_parallel": 2},
        "ZeRO-1": {"shard_parallel": 2, "zero_stage": 1},
        "ZeRO-2": {"shard_parallel": 2, "zero_stage": 2},
        "ZeRO-3": {"shard_parallel": 2},
        "ZeRO-3 in host memory": {"shard_parallel": 2, "cpu_offload": True},
        "TP": {"tensor_parallel": 2},
        "TP + SP": {"tensor_parallel": 2, "sequence_parallel": True},
        "CP": {"context_parallel": 2},
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
        "CP x DDP": {"context_parallel": 2, "data_parallel": 2},
        "CP x ZeRO-3": {"context_parallel": 2, "shard_parallel": 2},
        "CP x TP + SP": {
            "context_parallel": 2, "tensor_parallel": 2, "sequence_parallel": True,
        },
        "PP zbv-zero-bubble x CP": {
            "pipeline_parallel": 2, "virtual_pipeline": 2, "pipeline_schedule": "zbv-zero-bubble",
            "context_parallel": 2,
        },
    },
    8: {"PP x TP x DP": {"pipeline_parallel": 2, "tensor_parallel": 2, "data_parallel": 2}},
}  # fmt: skip

MODELS = {
    "gpt2": {"norm": "layernorm", "position": "learned", "bias": True},
    "llama": {"mlp": "gated", "num_kv_heads": 2, "tied_head": False},
}


EXPERTS = {"num_experts": 4, "experts_per_token": 2, "mlp": "gated"}
EXPERT_LAYOUTS = {
    "EP": {"data_parallel": 2, "expert_parallel": 2},
    "DDP": {"data_parallel": 2},
    "ZeRO-3": {"shard_parallel": 2},
    "PP": {"pipeline_parallel": 2},
}
PAIR_LAYOUTS = ("ZeRO-3", "TP + SP", "PP interleaved", "CP")
PRECISION = {"compute": "bf16"}
OPTIMIZERS = {
    "adagrad": 5e-3, "adam": 1e-3, "lamb": 2e-3, "muon": 1e-3, "rmsprop": 3e-4, "sgd": 5e-2,
}  # fmt: skip


def optimizer(name):
    return {"name": name, "learning_rate": OPTIMIZERS[name], "epsilon": 1e-5}


@pytest.fixture(scope="module")
def alone(small):
    """A function that returns the losses of one process."""

    def run(**sections):
        reports = []
        train(small(**sections), on_metrics=reports.append)
        return [report[key] for report in reports for key in ("train_loss", "val_loss")]

    return run


@pytest.fixture(scope="module")
def pairs(settings, gang, losses):
    """Losses of everything that two workers run here, by name, out of one gang."""
    orders = {
        **{name: settings(layout=layout) for name, layout in LAYOUTS[2].items()},
        **{
            f"{kind}, {name}": settings(model=model, layout=LAYOUTS[2][name])
            for kind, model in MODELS.items()
            for name in PAIR_LAYOUTS
        },
        **{
            f"bf16, {name}": settings(precision=PRECISION, layout=LAYOUTS[2][name])
            for name in ("DDP", *PAIR_LAYOUTS)
        },
        **{
            f"experts, {name}": settings(model=EXPERTS, layout=layout)
            for name, layout in EXPERT_LAYOUTS.items()
        },
        "local": settings(layout={"data_parallel": 2, "local_steps": 4}),
        **{
            name: settings(optimizer=optimizer(name), layout=LAYOUTS[2]["ZeRO-3"])
            for name in OPTIMIZERS
        },
    }
    outcomes = gang([{"config": config} for config in orders.values()], 2)
    return {name: losses(outcome) for name, outcome in zip(orders, outcomes, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS[2])
def test_two_workers_learn_what_one_process_learns(name, pairs, alone):
    expected = alone()
    assert len(expected) == 10
    assert pairs[name] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [4, 8])
def test_products_of_layouts_learn_what_one_process_learns(
    world_size, settings, gang, losses, alone
):
    layouts = LAYOUTS[world_size]
    outcomes = gang(
        [{"config": settings(layout=layout)} for layout in layouts.values()], world_size
    )
    for name, outcome in zip(layouts, outcomes, strict=True):
        assert losses(outcome) == pytest.approx(alone(), abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_other_models_learn_the_same_in_every_kind_of_layout(kind, pairs, alone):
    expected = alone(model=MODELS[kind])
    for name in PAIR_LAYOUTS:
        assert pairs[f"{kind}, {name}"] == pytest.approx(expected, abs=1e-5), name


@pytest.mark.slow
def test_experts_learn_the_same_wherever_they_are(pairs, alone):
    expected = alone(model=EXPERTS)
    for name in EXPERT_LAYOUTS:
        assert pairs[f"experts, {name}"] == pytest.approx(expected, abs=1e-5), name


@pytest.mark.slow
def test_workers_that_average_now_and_then_learn_nearly_the_same(pairs, alone):
    expected = alone()
    assert pairs["local"] == pytest.approx(expected, abs=0.05)
    assert pairs["local"] != pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_bf16_layouts_stay_within_2e_2_of_one_process(pairs, alone):
    expected = alone(precision=PRECISION)
    for name in ("DDP", *PAIR_LAYOUTS):
        assert pairs[f"bf16, {name}"] == pytest.approx(expected, abs=2e-2), name


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_learns_the_same_sharded_and_unsharded(name, pairs, alone):
    # Muon's Newton-Schulz iteration runs in bf16.
    tolerance = 2e-3 if name == "muon" else 1e-5
    assert pairs[name] == pytest.approx(alone(optimizer=optimizer(name)), abs=tolerance)
