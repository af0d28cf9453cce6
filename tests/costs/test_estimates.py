import pytest

from planner.costs import (
    ClusterConfig,
    count_params,
    estimate,
    num_train_tokens,
    parse_cluster,
    resolve_cluster,
)
from planner.errors import ConfigError
from planner.trial import (
    BatchConfig,
    ExecutionConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelLayout,
    PrecisionConfig,
    TrainConfig,
    TrialConfig,
)

GPT_7B = ModelConfig(num_layers=32, d_model=4096, sequence_length=2048, vocab_size=50304)
TINY = ModelConfig(num_layers=4, d_model=128, sequence_length=64)


def trial(model=GPT_7B, tokens=10**9, sequences=256, micro=1, precision="bf16", **layout):
    return TrialConfig(
        model=model,
        train=TrainConfig(tokens=tokens),
        batch=BatchConfig(sequences_per_step=sequences, micro_batch_sequences=micro),
        layout=ParallelLayout(**layout),
        precision=PrecisionConfig(compute=precision),
    )


@pytest.fixture(scope="module")
def h100():
    return resolve_cluster(parse_cluster("64xh100-sxm"))


def test_the_parts_of_an_estimate_sum_to_its_totals(h100):
    cost = estimate(trial(shard_parallel=64), h100)
    assert sum(cost.memory_breakdown_bytes.values()) == pytest.approx(cost.peak_memory_bytes)
    assert sum(cost.step_breakdown_seconds.values()) == pytest.approx(cost.step_seconds)
    assert cost.fits
    assert cost.reason is None
    assert 0.3 < cost.mfu < 0.75


def test_groups_of_parameters_sum_to_a_hand_count():
    count = count_params(TINY)
    assert count.total == 256 * 128 + 4 * (12 * 128**2 + 2 * 128) + 128
    assert count.non_embedding == count.total - 256 * 128


def test_a_model_that_does_not_fit_says_what_it_needs_and_what_to_change(h100):
    cost = estimate(trial(data_parallel=64), h100)
    assert not cost.fits
    assert "does not fit: needs" in cost.reason
    assert "shard_parallel" in cost.reason


def test_a_layout_larger_than_the_cluster_does_not_fit(h100):
    cost = estimate(trial(data_parallel=128), h100)
    assert not cost.fits
    assert "needs 128 devices, the cluster has 64" in cost.reason


def test_more_threads_than_the_clusters_cores_do_not_fit():
    cores = resolve_cluster(ClusterConfig(devices_per_node=2))
    two, eight = (
        estimate(trial().replace(execution=ExecutionConfig(threads_per_worker=n)), cores)
        for n in (2, 8)
    )
    assert "threads" not in (two.reason or "")
    assert not eight.fits
    assert "the threads need 8 cores (1 x threads_per_worker=8), the cluster has 2" in eight.reason


def test_an_unknown_device_is_a_configuration_error_that_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"no device named 'h100'.*h100-sxm.*v100-sxm") as caught:
        resolve_cluster(ClusterConfig(device="h100"))
    assert caught.value.exit_code == 2
    assert "device_overrides" in caught.value.hint


def test_a_precision_that_the_device_lacks_is_a_configuration_error():
    with pytest.raises(ConfigError, match="v100-sxm has no bf16"):
        estimate(trial(data_parallel=8), resolve_cluster(ClusterConfig(device="v100-sxm")))


def test_money_is_absent_without_a_price_and_proportional_to_it():
    free = resolve_cluster(ClusterConfig(device="mi325x"))
    priced = resolve_cluster(
        ClusterConfig(device="mi325x", usd_per_device_hour=2.0, price_date="2026-08")
    )
    config = trial(shard_parallel=8)
    assert estimate(config, free).usd is None
    cost = estimate(config, priced)
    assert cost.usd == pytest.approx(2.0 * cost.device_hours)
    assert cost.price_date == "2026-08"


@pytest.mark.parametrize(
    ("train", "tokens"),
    [
        (TrainConfig(tokens=1000), 1024),
        (TrainConfig(tokens=1), 1024),
        (TrainConfig(tokens_per_param=20), 20 * 787_584),
        (TrainConfig(flops=5308416.0 * 1024 * 10), 10240),
    ],
    ids=["tokens", "at least one step", "per parameter", "flops"],
)
def test_training_lengths_resolve_to_whole_steps(train, tokens):
    config = TrialConfig(model=TINY, train=train, batch=BatchConfig(sequences_per_step=16))
    assert num_train_tokens(config) % 1024 == 0
    assert abs(num_train_tokens(config) - tokens) <= 512


def test_a_cpu_core_trains_a_small_model_at_the_measured_rate():
    config = TrialConfig(
        model=TINY, train=TrainConfig(tokens=10**6), batch=BatchConfig(sequences_per_step=12)
    )
    cost = estimate(config, resolve_cluster(ClusterConfig()))
    assert 9e3 < config.tokens_per_step / cost.step_seconds < 16e3
    assert cost.usd is None
    assert cost.kwh is None
    assert cost.confidence == "low"


def pipelined(schedule, **layout):
    return TrialConfig(
        model=GPT_7B,
        train=TrainConfig(tokens=10**9),
        batch=BatchConfig(sequences_per_step=64, micro_batch_sequences=1),
        layout=ParallelLayout(pipeline_parallel=4, pipeline_schedule=schedule, **layout),
        precision=PrecisionConfig(compute="bf16"),
    )


def test_a_split_backward_pass_shortens_the_bubble_and_gpipe_holds_every_micro_batch(h100):
    plain = estimate(pipelined("1f1b"), h100)
    split = estimate(pipelined("interleaved-zero-bubble", virtual_pipeline=2), h100)
    every = estimate(pipelined("gpipe"), h100)
    assert split.step_breakdown_seconds["pipeline"] < plain.step_breakdown_seconds["pipeline"]
    ratio = (
        every.memory_breakdown_bytes["activations"] / plain.memory_breakdown_bytes["activations"]
    )
    assert ratio > 4


def test_settings_that_move_states_and_gradients_are_priced(h100):
    base = trial(shard_parallel=8, data_parallel=8)
    offloaded = base.replace(layout=base.layout.replace(cpu_offload=True))
    rarely = base.replace(layout=base.layout.replace(local_steps=10))
    first, moved, rare = (estimate(c, h100) for c in (base, offloaded, rarely))
    assert moved.memory_breakdown_bytes["optimizer"] == 0
    assert moved.step_breakdown_seconds["optimizer"] > first.step_breakdown_seconds["optimizer"]
    assert rare.step_breakdown_seconds["data"] < first.step_breakdown_seconds["data"]


@pytest.mark.parametrize(
    ("optimizer", "bytes_per_param"),
    [("sgd", 0), ("adagrad", 4), ("rmsprop", 4), ("adam", 8), ("adamw", 8), ("lamb", 8)],
)
def test_moments_follow_the_optimizer(h100, optimizer, bytes_per_param):
    config = trial(shard_parallel=64).replace(optimizer=OptimizerConfig(name=optimizer))
    cost = estimate(config, h100)
    per_param = cost.memory_breakdown_bytes["optimizer"] / cost.num_params * 64
    assert per_param == pytest.approx(bytes_per_param, abs=0.1)


def test_momentum_adds_a_moment(h100):
    config = trial(shard_parallel=64).replace(optimizer=OptimizerConfig(name="sgd", momentum=0.9))
    cost = estimate(config, h100)
    assert cost.memory_breakdown_bytes["optimizer"] / cost.num_params * 64 == pytest.approx(
        4, abs=0.1
    )


def test_doubling_the_tokens_doubles_flops_time_and_money(h100):
    one = estimate(trial(tokens=2**31, shard_parallel=64), h100)
    two = estimate(trial(tokens=2**32, shard_parallel=64), h100)
    assert two.train_flops == 2 * one.train_flops
    assert two.train_seconds == pytest.approx(2 * one.train_seconds)
    assert two.step_seconds == one.step_seconds
    assert two.usd - one.usd == pytest.approx(one.train_seconds * 64 / 3600 * 2.95)
