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
    "weight norm": {"weight_norm": True},
}


EXPERTS = {"num_experts": 4, "experts_per_token": 2, "mlp": "gated"}
EXPERT_LAYOUTS = {
    "EP": {"data_parallel": 2, "expert_parallel": 2},
    "DDP": {"data_parallel": 2},
    "ZeRO-3": {"shard_parallel": 2},
    "PP": {"pipeline_parallel": 2},
}
PAIR_LAYOUTS = {
    "gpt2": ("ZeRO-3", "TP + SP", "PP interleaved", "CP"),
    "llama": ("ZeRO-3", "TP + SP", "PP interleaved", "CP"),
    "weight norm": ("ZeRO-3", "PP interleaved"),
}
POWERSGD = {"data_parallel": 2, "gradient_compression": "powersgd"}
BF16 = {"compute": "bf16"}
WIDE = {
    # The logits of one pass over all 64 sequences of a worker take 256 MiB, several times over.
    "model": {"num_layers": 1, "vocab_size": 65_536},
    "train": {"tokens": 16 * 128, "num_validations": 1, "validation_tokens": 16},
}
LIMIT_BYTES = 600 * 2**20
OPTIMIZERS = {
    "adagrad": 5e-3, "adam": 1e-3, "lamb": 2e-3, "muon": 1e-3, "rmsprop": 3e-4, "sgd": 5e-2,
}  # fmt: skip


def optimizer(name):
    return {"name": name, "learning_rate": OPTIMIZERS[name], "epsilon": 1e-5}


@pytest.fixture(scope="module")
def alone(small):
    """A function that returns the losses of one process, each trial run once."""
    known = {}

    def run(**sections):
        config = small(**sections)
        key = config.model_dump_json()
        if key not in known:
            reports = []
            train(config, on_metrics=reports.append)
            known[key] = [r[loss] for r in reports for loss in ("train_loss", "val_loss")]
        return known[key]

    return run


@pytest.fixture(scope="module")
def under(settings):
    """A function that returns a trial in a layout; every worker accumulates micro-batches."""

    def make(layout, **sections):
        shards = layout.get("data_parallel", 1) * layout.get("shard_parallel", 1)
        size = 2 if shards < 4 else 1
        return settings(layout=layout, batch={"micro_batch_sequences": size}, **sections)

    return make


@pytest.fixture(scope="module")
def pairs(under, gang, tmp_path_factory):
    """What comes of everything that two workers run here, by name, out of one gang."""
    folder = str(tmp_path_factory.mktemp("powersgd"))
    layouts = LAYOUTS[2]
    configs = {
        **{name: under(layout) for name, layout in layouts.items()},
        **{f"bf16, {name}": under(layout, precision=BF16) for name, layout in layouts.items()},
        **{
            f"{kind}, {name}": under(layouts[name], model=model)
            for kind, model in MODELS.items()
            for name in PAIR_LAYOUTS[kind]
        },
        **{
            f"experts, {name}": under(layout, model=EXPERTS)
            for name, layout in EXPERT_LAYOUTS.items()
        },
        **{
            f"fp16 sums, {name}": under(layouts[name], precision={"reduce": "fp16"})
            for name in ("DDP", "ZeRO-3")
        },
        "local": under({"data_parallel": 2, "local_steps": 4}),
        **{name: under(layouts["ZeRO-3"], optimizer=optimizer(name)) for name in OPTIMIZERS},
    }
    orders = {name: {"config": config} for name, config in configs.items()}
    orders["powersgd"] = {"config": under(POWERSGD)}
    orders["powersgd, stopped"] = orders["powersgd"] | {"checkpoint_dir": folder, "stop_after": 2}
    orders["powersgd, resumed"] = orders["powersgd"] | {"checkpoint_dir": folder}
    for name, fits in (("too large", False), ("made to fit", True)):
        config = under({"data_parallel": 2}, **WIDE, execution={"fit_micro_batch": fits})
        config["batch"] = {"sequences_per_step": 128}
        orders[name] = {"config": config, "limited_rank": 1, "limit_bytes": LIMIT_BYTES}
    return dict(zip(orders, gang(list(orders.values()), 2, 400), strict=True))


@pytest.fixture(scope="module")
def of_two(pairs, losses):
    """A function that returns the losses of a named run of two workers."""
    return lambda name: losses(pairs[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS[2])
def test_two_workers_learn_what_one_process_learns(name, of_two, alone):
    expected = alone()
    assert len(expected) == 10
    assert of_two(name) == pytest.approx(expected, abs=1e-5)
    assert of_two(f"bf16, {name}") == pytest.approx(alone(precision=BF16), abs=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [4, 8])
def test_products_of_layouts_learn_what_one_process_learns(world_size, under, gang, losses, alone):
    runs = {
        (name, compute): under(layout, precision={"compute": compute})
        for name, layout in LAYOUTS[world_size].items()
        for compute in ("fp32", "bf16")
        if compute == "fp32" or "CP" not in name
    }
    outcomes = gang([{"config": config} for config in runs.values()], world_size, 400)
    for (name, compute), outcome in zip(runs, outcomes, strict=True):
        tolerance = 1e-5 if compute == "fp32" else 2e-2
        expected = alone(precision={"compute": compute})
        assert losses(outcome) == pytest.approx(expected, abs=tolerance), (name, compute)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_other_models_learn_the_same_in_every_kind_of_layout(kind, pairs, of_two, alone):
    expected = alone(model=MODELS[kind])
    for name in (name for name in pairs if name.startswith(kind)):
        assert of_two(name) == pytest.approx(expected, abs=1e-5), name


@pytest.mark.slow
def test_experts_learn_the_same_wherever_they_are(of_two, alone):
    expected = alone(model=EXPERTS)
    for name in EXPERT_LAYOUTS:
        assert of_two(f"experts, {name}") == pytest.approx(expected, abs=1e-5), name


@pytest.mark.slow
def test_workers_that_average_now_and_then_learn_nearly_the_same(of_two, alone):
    expected = alone()
    assert of_two("local") == pytest.approx(expected, abs=0.05)
    assert of_two("local") != pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DDP", "ZeRO-3"])
def test_gradients_summed_in_fp16_learn_nearly_the_same(name, of_two):
    assert of_two(f"fp16 sums, {name}") == pytest.approx(of_two(name), abs=1e-2)
    assert of_two(f"fp16 sums, {name}") != of_two(name)


@pytest.mark.slow
def test_powersgd_learns_nearly_the_same_and_its_debts_survive_a_resume(of_two, alone):
    expected, found = alone(), of_two("powersgd")
    assert found == pytest.approx(expected, abs=0.05)
    assert found[-1] < found[1] - 0.2
    assert of_two("powersgd, resumed") == found[4:]


@pytest.mark.slow
def test_memory_that_one_worker_lacks_ends_the_trial_for_all(pairs):
    outcome = pairs["too large"]
    assert outcome["states"] == ["out_of_memory", "out_of_memory"]
    assert "on another worker" in outcome["result"]["reason"]
    assert outcome["result"]["peak_memory_bytes"] > 1e8


@pytest.mark.slow
def test_several_workers_find_a_micro_batch_that_fits_them_all(pairs):
    outcome = pairs["made to fit"]
    assert outcome["states"] == ["completed", "completed"]
    assert outcome["result"]["train_tokens"] == 16 * 128
    assert 1 <= outcome["result"]["metrics"]["micro_batch_sequences"] < 64


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_learns_the_same_sharded_and_unsharded(name, of_two, alone):
    # Muon's Newton-Schulz iteration runs in bf16.
    tolerance = 2e-3 if name == "muon" else 1e-5
    assert of_two(name) == pytest.approx(alone(optimizer=optimizer(name)), abs=tolerance)
