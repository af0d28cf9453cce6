"""The cost model's memory against what forward and backward passes hold, by torch's profiler."""

from dataclasses import replace

import pytest

from planner.costs import ClusterConfig, resolve_cluster
from planner.costs.estimates import device_peaks
from planner.costs.memory import MemoryConstants, memory_use
from planner.costs.workload import workload_of
from planner.trial import TrialConfig

SETTINGS = {
    "as it is": {},
    "selective recomputation": {"execution": {"activation_checkpointing": "selective"}},
    "full recomputation": {"execution": {"activation_checkpointing": "full"}},
    "chunked loss": {"execution": {"chunked_loss": True}},
    "full recomputation, chunked loss": {
        "execution": {"activation_checkpointing": "full", "chunked_loss": True}
    },
    "micro-batches": {"batch": {"micro_batch_sequences": 2}},
    "full recomputation, micro-batches": {
        "batch": {"micro_batch_sequences": 2}, "execution": {"activation_checkpointing": "full"},
    },
    "bf16": {"precision": {"compute": "bf16"}},
    "bf16, full recomputation": {
        "precision": {"compute": "bf16"}, "execution": {"activation_checkpointing": "full"},
    },
    "gpt-2's block": {"model": {"norm": "layernorm", "position": "learned", "bias": True}},
    "llama's block": {"model": {"mlp": "gated", "num_kv_heads": 1, "tied_head": False}},
}  # fmt: skip


def trial(settings):
    base = {
        "model": {"num_layers": 4, "d_model": 64, "num_heads": 4, "sequence_length": 128,
                  "vocab_size": 1024},
        "train": {"tokens": 1e5}, "batch": {"sequences_per_step": 8},
    }  # fmt: skip
    merged = {k: {**base.get(k, {}), **settings.get(k, {})} for k in base | settings}
    return TrialConfig.model_validate(merged)


@pytest.fixture(scope="module")
def measured_held_bytes(blank_stepper, peak_bytes):
    """A function that returns the most that a pass holds beside parameters and states."""

    def measure(config):
        stepper = blank_stepper(config)
        return peak_bytes(lambda: stepper._accumulate(0, config.num_micro_batches))

    return measure


def modelled_held_bytes(config):
    cluster = resolve_cluster(ClusterConfig())
    w = workload_of(config, device_peaks(config, cluster), on_cpu=True)
    use = memory_use(w, MemoryConstants())
    return float(use.gradients + use.activations + use.logits)


@pytest.fixture(scope="module")
def plain(measured_held_bytes):
    config = trial({})
    return measured_held_bytes(config), modelled_held_bytes(config)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_changes_the_peak_by_the_factor_that_the_cost_model_says(
    name, plain, measured_held_bytes
):
    config = trial(SETTINGS[name])
    measured, modelled = measured_held_bytes(config), modelled_held_bytes(config)
    print(f"{name}: measured {measured / 1e6:.2f} MB, modelled {modelled / 1e6:.2f} MB")
    assert modelled / plain[1] == pytest.approx(measured / plain[0], rel=0.15)
    assert modelled == pytest.approx(measured, rel=0.05)


def test_the_peak_is_a_moment_and_never_the_sum_of_all_kinds():
    config = trial({"execution": {"activation_checkpointing": "full"}})
    cluster = resolve_cluster(ClusterConfig())
    w = workload_of(config, device_peaks(config, cluster), on_cpu=True)
    at_the_loss = memory_use(w)
    assert float(at_the_loss.gradients) == 0.0 < float(at_the_loss.logits)
    in_backward = memory_use(replace(w, vocab_size=16.0))
    assert float(in_backward.logits) == 0.0 < float(in_backward.gradients)
