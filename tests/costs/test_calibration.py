from dataclasses import replace

import numpy as np
import pytest

from planner.costs import ClusterConfig, estimate, resolve_cluster
from planner.costs.calibration import MeasuredTrial, calibrate, uncalibrated
from planner.costs.measured import calibrate_on_runs, measured_trial
from planner.costs.memory import GPU_MEMORY, memory_use
from planner.costs.speed import Efficiency, step_time
from planner.costs.workload import concatenate
from planner.trial import (
    BatchConfig,
    ModelConfig,
    TrainConfig,
    TrialConfig,
    TrialResult,
    TrialState,
)

TRUTH = Efficiency(
    gemm=0.6, attention=0.4, memory=0.6, network=0.4, launch_seconds=1.2e-3, step_seconds=0.0
)


@pytest.fixture(scope="module")
def variety(workload_on):
    """Configurations that differ in everything that the constants act on."""
    return [
        workload_on(
            "llama-3-8b", tensor=t, data=8 // t, micro_batch=b, num_micro_batches=4.0, recompute=r,
            sequence_tokens=s, context_tokens=s,
        )
        for t in (1, 2, 4)
        for b in (1.0, 4.0)
        for r in (0.0, 2.0)
        for s in (512.0, 8192.0)
    ]  # fmt: skip


def measured(workloads, cluster, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    seconds = step_time(concatenate(workloads), cluster, TRUTH).total
    seconds = seconds * np.exp(noise * rng.standard_normal(len(workloads)))
    return [
        MeasuredTrial(workload=w, cluster=cluster, step_seconds=float(s))
        for w, s in zip(workloads, seconds, strict=True)
    ]


def errors(calibration, workloads, cluster):
    truth = step_time(concatenate(workloads), cluster, TRUTH).total
    return np.abs(calibration.predict(concatenate(workloads), cluster).value / truth - 1)


@pytest.mark.parametrize(("num_trials", "most"), [(3, 0.15), (6, 0.08), (12, 0.03)])
def test_few_trials_on_a_cluster_bring_the_error_down(variety, cluster_of, num_trials, most):
    cluster = cluster_of("8xh100-sxm")
    order = np.random.default_rng(3).permutation(len(variety))
    chosen = [variety[i] for i in order[:num_trials]]
    rest = [variety[i] for i in order[12:]]
    before = np.median(errors(uncalibrated(cluster), rest, cluster))
    after = np.median(errors(calibrate(measured(chosen, cluster)), rest, cluster))
    assert before > 0.2
    assert after < most


def test_the_90_percent_interval_covers_most_of_noisy_measurements(variety, cluster_of):
    cluster = cluster_of("8xh100-sxm")
    covered = []
    for seed in range(6):
        trials = measured(variety, cluster, noise=0.05, seed=seed)
        order = np.random.default_rng(seed).permutation(len(trials))
        calibration = calibrate([trials[i] for i in order[:12]])
        for i in order[12:]:
            found = calibration.predict(concatenate([trials[i].workload]), cluster)
            covered.append(found.lower[0] <= (trials[i].step_seconds or 0) <= found.upper[0])
    assert 0.80 <= np.mean(covered) <= 1.0


def test_intervals_narrow_with_measurements_and_contain_the_estimate(variety, cluster_of):
    cluster = cluster_of("8xh100-sxm")
    w = concatenate(variety[:4])
    before = uncalibrated(cluster).predict(w, cluster)
    after = calibrate(measured(variety[4:16], cluster)).predict(w, cluster)
    for found in (before, after):
        assert np.all(found.lower < found.value)
        assert np.all(found.value < found.upper)
    assert np.all(after.upper / after.lower < before.upper / before.lower)


def test_one_trial_moves_the_estimate_towards_it(variety, cluster_of):
    cluster = cluster_of("8xh100-sxm")
    trial = measured(variety[:1], cluster)[0]
    before = uncalibrated(cluster).predict(concatenate([trial.workload]), cluster).value[0]
    after = calibrate([trial]).predict(concatenate([trial.workload]), cluster).value[0]
    assert abs(after - trial.step_seconds) < abs(before - trial.step_seconds)


def test_constants_stay_inside_their_bounds_whatever_was_measured(variety, cluster_of):
    cluster = cluster_of("8xh100-sxm")
    trials = [replace(t, step_seconds=1e-6) for t in measured(variety[:8], cluster)]
    found = calibrate(trials).efficiency
    assert 0 < found.gemm <= 1.21
    assert 0 < found.attention <= 1.01
    assert 0 < found.network <= 1.21


def test_a_prediction_outside_of_what_the_trials_span_says_so(variety, workload_on, cluster_of):
    cluster = cluster_of("8xh100-sxm")
    without = [w for w in variety if w.recompute == 0.0]
    calibration = calibrate(measured(without, cluster))
    assert calibration.warnings(without[0]) == ()
    notes = " ".join(calibration.warnings(workload_on(recompute=2.0, data=512.0)))
    assert "recompute modes" in notes
    assert "numbers of devices" in notes


def test_measured_memory_corrects_the_estimate(variety, cluster_of):
    cluster = cluster_of("8xh100-sxm")
    truth = replace(GPU_MEMORY, overhead_bytes=3e9, activation_factor=1.25)
    trials = [
        MeasuredTrial(workload=w, cluster=cluster, memory_bytes=float(memory_use(w, truth).total))
        for w in variety
    ]
    calibration = calibrate(trials[::2])
    before, after = [], []
    for trial in trials[1::2]:
        first = uncalibrated(cluster).predict_memory(trial.workload).value[0]
        before.append(abs(first / trial.memory_bytes - 1))
        after.append(
            abs(calibration.predict_memory(trial.workload).value[0] / trial.memory_bytes - 1)
        )
    assert np.median(after) < 0.6 * np.median(before)


def test_calibration_needs_a_trial():
    with pytest.raises(ValueError, match="at least one measured trial"):
        calibrate([])


def finished(state=TrialState.COMPLETED, width=128, rate=4000.0, num_steps=50, **changes):
    config = TrialConfig(
        model=ModelConfig(num_layers=4, d_model=width, sequence_length=64),
        train=TrainConfig(tokens=10**5),
        batch=BatchConfig(sequences_per_step=12),
    )
    return TrialResult(
        trial="t000", config=config.model_dump(mode="json"), state=state, tokens_per_second=rate,
        num_steps=num_steps, **changes,
    )  # fmt: skip


def test_the_trials_of_a_sweep_calibrate_the_next_plan(cluster_of):
    cluster = resolve_cluster(ClusterConfig())
    slow = [finished(width=width, rate=4e7 / width**2) for width in (64, 128, 192, 256)]
    calibration = calibrate_on_runs([("earlier", slow)], cluster).calibration
    config = TrialConfig(
        model=ModelConfig(num_layers=4, d_model=160, sequence_length=64),
        train=TrainConfig(tokens=10**5),
        batch=BatchConfig(sequences_per_step=12),
    )
    truth = 12 * 64 / (4e7 / 160**2)
    before = estimate(config, cluster).step_seconds
    found = estimate(config, cluster, calibration=calibration)
    assert abs(found.step_seconds / truth - 1) < 0.5 * abs(before / truth - 1)
    assert found.confidence == "high"


def test_trials_that_measured_nothing_are_left_out():
    cluster = resolve_cluster(ClusterConfig())
    failed = finished(state=TrialState.FAILED)
    silent = finished(rate=None)
    assert measured_trial(failed, cluster) is None
    assert measured_trial(silent, cluster) is None
    assert calibrate_on_runs([("earlier", [failed, silent])], cluster) is None


def test_a_trial_of_fewer_than_five_steps_measures_its_start_and_not_its_speed():
    cluster = resolve_cluster(ClusterConfig())
    short = measured_trial(finished(num_steps=4, peak_memory_bytes=5e8), cluster)
    assert short.step_seconds is None
    assert short.memory_bytes == 5e8


def test_memory_that_the_configuration_does_not_decide_is_not_learnt(workload_on, cluster_of):
    cluster = cluster_of("8xa100-sxm")
    sizes = [workload_on(micro_batch=float(2**i), zero_stage=3.0, shard=64.0) for i in range(7)]
    plain = [float(uncalibrated(cluster).predict_memory(w).value[0]) for w in sizes]

    def trials(factors):
        return [
            MeasuredTrial(workload=w, cluster=cluster, memory_bytes=factor * size)
            for w, size, factor in zip(sizes, plain, factors, strict=True)
        ]

    random = calibrate(trials([1.0, 1.0, 1.9, 1.0, 1.0, 0.6, 1.0]))
    assert random.predict_memory(sizes[3]).value[0] == pytest.approx(plain[3])
    steady = calibrate(trials([1.2] * 7))
    assert steady.predict_memory(sizes[3]).value[0] == pytest.approx(1.2 * plain[3], rel=0.05)
