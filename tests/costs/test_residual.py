"""Constants and residual process on a cluster whose truth is known."""

from dataclasses import fields, replace

import numpy as np
import pytest

from planner.costs.calibration import MeasuredTrial, calibrate, uncalibrated
from planner.costs.candidates import LayoutProblem
from planner.costs.layouts import search_layouts
from planner.costs.residual import Prior, features, fit_process
from planner.costs.shapes import named_shape
from planner.costs.speed import default_efficiency, product_efficiency, step_time
from planner.costs.workload import Workload, concatenate


@pytest.fixture(scope="module")
def configurations(workload_on):
    """Layouts, micro-batches, sequences and recomputation of two models."""
    return [
        workload_on(
            shape, tensor=t, data=16 // t, micro_batch=b, num_micro_batches=4.0, recompute=r,
            sequence_tokens=s, context_tokens=s,
        )
        for shape in ("gpt2-xl", "llama-3-8b")
        for t in (1, 4)
        for b in (1.0, 4.0)
        for r in (0.0, 2.0)
        for s in (1024.0, 8192.0)
    ]  # fmt: skip


def measured(workloads, cluster, factors):
    """Trials of a cluster with slower products, a fifth of the network and noisy steps."""
    truth = replace(default_efficiency(cluster), gemm=0.6, network=0.2, memory=0.6)
    seconds = step_time(concatenate(workloads), cluster, truth).total * factors
    return [
        MeasuredTrial(workload=w, cluster=cluster, step_seconds=float(s))
        for w, s in zip(workloads, seconds, strict=True)
    ]


def as_numbers(w):
    return Workload(**{f.name: float(np.ravel(getattr(w, f.name))[0]) for f in fields(Workload)})


def noise(size, sigma, seed):
    return np.exp(sigma * np.random.default_rng(seed).standard_normal(size))


def errors(calibration, trials):
    w = concatenate([t.workload for t in trials])
    truth = np.array([t.step_seconds for t in trials])
    return np.abs(calibration.predict(w, trials[0].cluster).value / truth - 1.0)


def test_constants_are_recovered_from_ten_trials(configurations, cluster_of):
    cluster = cluster_of("16xh100-sxm")
    trials = measured(configurations, cluster, noise(len(configurations), 0.02, 0))
    order = np.random.default_rng(1).permutation(len(trials))
    found = calibrate([trials[i] for i in order[:10]])
    assert found.efficiency.gemm == pytest.approx(0.6, rel=0.15)
    assert found.efficiency.network < 0.45
    assert np.median(errors(found, [trials[i] for i in order[10:]])) < 0.04


@pytest.mark.parametrize("num_trials", [4, 10])
def test_intervals_cover_at_about_the_stated_rate_whatever_the_noise(
    configurations, cluster_of, num_trials
):
    cluster, covered = cluster_of("16xh100-sxm"), []
    for seed in range(8):
        sigma = 0.02 if seed % 2 else 0.1
        trials = measured(configurations, cluster, noise(len(configurations), sigma, seed))
        order = np.random.default_rng(seed).permutation(len(trials))
        found = calibrate([trials[i] for i in order[:num_trials]])
        rest = [trials[i] for i in order[num_trials:]]
        p = found.predict(concatenate([t.workload for t in rest]), cluster)
        truth = np.array([t.step_seconds for t in rest])
        covered += list((p.lower <= truth) & (truth <= p.upper))
    assert 0.82 <= np.mean(covered) <= 0.99


def test_one_odd_trial_does_not_ruin_the_others(configurations, cluster_of):
    cluster = cluster_of("16xh100-sxm")
    trials = measured(configurations, cluster, noise(len(configurations), 0.02, 5))
    order = np.random.default_rng(5).permutation(len(trials))
    chosen, rest = [trials[i] for i in order[:10]], [trials[i] for i in order[10:]]
    odd = [replace(chosen[0], step_seconds=4.0 * chosen[0].step_seconds), *chosen[1:]]
    clean, dirty = calibrate(chosen), calibrate(odd)
    assert np.median(errors(dirty, rest)) < np.median(errors(clean, rest)) + 0.03
    assert dirty.efficiency.gemm == pytest.approx(clean.efficiency.gemm, rel=0.1)


def test_a_trial_that_ran_twice_is_no_problem(configurations, cluster_of):
    cluster = cluster_of("16xh100-sxm")
    trials = measured(configurations[:3], cluster, np.ones(3))
    found = calibrate([*trials, *trials, *trials])
    assert errors(found, trials).max() < 0.03


def test_dense_trials_say_nothing_of_experts(workload_on, cluster_of):
    cluster = cluster_of("16xh100-sxm")
    dense = [workload_on(data=16.0, micro_batch=b) for b in (1.0, 2.0, 4.0, 8.0)]
    found = calibrate(measured(dense, cluster, np.ones(4)))
    start = default_efficiency(cluster)
    assert found.efficiency.grouped == pytest.approx(start.grouped)
    mixture = workload_on("mixtral-8x7b", data=16.0, expert=8.0)
    slow = [
        MeasuredTrial(
            workload=replace(mixture, micro_batch=b), cluster=cluster,
            step_seconds=1.5 * float(step_time(replace(mixture, micro_batch=b), cluster).total),
        )
        for b in (1.0, 2.0, 4.0)
    ]  # fmt: skip
    assert calibrate(slow).efficiency.grouped < start.grouped


def test_a_release_that_made_experts_faster_is_told_from_the_others(workload_on, cluster_of):
    cluster = cluster_of("64xh100-sxm")
    rows = [
        workload_on("mixtral-8x7b", data=64.0, expert=8.0, micro_batch=b, release=r)
        for r in (2025.5, 2026.5)
        for b in (1.0, 2.0, 4.0)
    ]
    speed = np.array([1.4, 1.4, 1.4, 1.0, 1.0, 1.0])
    seconds = step_time(concatenate(rows), cluster).total * speed
    trials = [
        MeasuredTrial(workload=w, cluster=cluster, step_seconds=float(s))
        for w, s in zip(rows, seconds, strict=True)
    ]
    found = calibrate(trials)
    new = [replace(rows[0], release=r, micro_batch=8.0) for r in (2025.5, 2026.5)]
    value = found.predict(concatenate(new), cluster).value
    assert value[0] / value[1] > 1.2


def test_layouts_are_ranked_by_what_trials_showed_beside_the_constants(cluster_of, workload_on):
    cluster = cluster_of("8xh100-sxm")
    problem = LayoutProblem(
        shape=named_shape("gpt2-xl"), cluster=cluster, sequences_per_step=64, recompute=("none",)
    )
    before = search_layouts(problem, num_best=4).best
    slow = [
        MeasuredTrial(
            workload=as_numbers(layout.workload), cluster=cluster,
            step_seconds=layout.step_seconds * (1.6 if layout is before[0] else 1.0),
        )
        for layout in before
        for _ in range(3)
    ]  # fmt: skip
    calibration = calibrate(slow)
    after = search_layouts(problem, num_best=4, calibration=calibration).best
    seconds = [layout.step_seconds for layout in after]
    assert seconds == sorted(seconds)
    assert str(after[0]) != str(before[0])
    found = calibration.predict(after[0].workload, cluster).value[0]
    assert after[0].step_seconds == pytest.approx(found)
    assert sum(after[0].step_breakdown_seconds.values()) == pytest.approx(found)


def test_a_slow_kernel_is_learnt_for_its_products_and_less_for_others(workload_on, cluster_of):
    cluster = cluster_of("16xh100-sxm")
    cells = [workload_on(data=16.0, micro_batch=b) for b in (1.0, 2.0, 4.0, 8.0)]
    slow = measured([*cells, *cells], cluster, np.array([1.0, 1.3, 1.0, 1.0] * 2))
    found = calibrate(slow)
    other = [replace(w, num_layers=2.0 * w.num_layers, data=8.0, pipeline=2.0) for w in cells]
    truth = measured(other, cluster, np.ones(4))
    seconds = np.array([trial.step_seconds for trial in truth])
    ratio = found.predict(concatenate(other), cluster).value / seconds
    assert ratio[1] > 1.1 * max(ratio[0], ratio[2], ratio[3])


def test_trials_that_contradict_each_other_leave_the_defaults(configurations, cluster_of):
    cluster = cluster_of("16xh100-sxm")
    default = step_time(concatenate(configurations), cluster).total
    sign = np.where(np.arange(len(configurations)) % 3 == 0, 1.25, 0.8)

    def moved(factors):
        trials = [
            MeasuredTrial(workload=w, cluster=cluster, step_seconds=float(s * f))
            for w, s, f in zip(configurations, default, factors, strict=True)
        ]
        order = np.random.default_rng(2).permutation(len(trials))
        found = calibrate([trials[i] for i in order[:8]])
        rest = order[8:]
        value = found.predict(concatenate([configurations[i] for i in rest]), cluster).value
        return np.abs(np.log(value / default[rest]))

    agreeing = moved(np.full(len(sign), 1.25))
    contradicting = moved(np.random.default_rng(7).permutation(sign))
    assert np.median(agreeing) > 0.15
    assert np.median(contradicting) < 0.4 * np.median(agreeing)


def test_a_recomputation_that_stops_early_saves_the_last_product_only(workload_on, cluster_of):
    cluster = cluster_of("8xh100-sxm")

    def matmul(recompute, early_stop):
        w = workload_on(
            data=8.0, micro_batch=4.0, vocab_size=0.0, recompute=recompute, early_stop=early_stop
        )
        return float(step_time(w, cluster).matmul)

    assert matmul(0.0, 1.0) == matmul(0.0, 0.0)
    assert matmul(0.0, 1.0) < matmul(2.0, 1.0) < matmul(2.0, 0.0)


def test_far_from_the_trials_the_interval_is_wider_than_near_them(configurations, cluster_of):
    cluster = cluster_of("16xh100-sxm")
    found = calibrate(measured(configurations[:8], cluster, np.ones(8)))
    near = found.predict(configurations[0], cluster)
    far = found.predict(replace(configurations[0], pipeline=16.0, num_micro_batches=64.0), cluster)
    assert far.upper[0] / far.lower[0] > 1.2 * near.upper[0] / near.lower[0]


def test_measurements_that_are_not_positive_are_refused(configurations, cluster_of):
    points = features(concatenate(configurations[:2]))
    with pytest.raises(ValueError, match="positive and finite"):
        fit_process(
            lambda u: np.zeros(2) + u[0], np.array([np.nan, 1.0]), points, np.ones(1),
            (-np.ones(1), np.ones(1)), Prior(),
        )  # fmt: skip


def test_a_product_reaches_more_of_the_rate_the_larger_it_is():
    shares = [float(product_efficiency(tokens, 4096.0, 30.0)) for tokens in (128.0, 1024.0, 8192.0)]
    assert shares == sorted(shares)
    assert shares[0] < 0.5
    assert 0.95 < shares[-1] < 1.0
    assert float(product_efficiency(8192.0, 4096.0, 0.0)) == 1.0


def test_gathers_through_one_port_of_a_node_are_slower_only_across_nodes(workload_on, cluster_of):
    def step(text, ports):
        cluster = cluster_of(text)
        w = workload_on(
            data=float(cluster.num_devices), shard=float(cluster.num_devices), zero_stage=3.0,
            gather_ports=ports,
        )  # fmt: skip
        return float(step_time(w, cluster).total)

    assert step("64xa100-sxm", 1.0) > 2.0 * step("64xa100-sxm", 64.0)
    assert step("8xa100-sxm", 1.0) == step("8xa100-sxm", 64.0)


def test_defaults_have_no_process(cluster_of):
    assert uncalibrated(cluster_of("8xh100-sxm")).residual is None
