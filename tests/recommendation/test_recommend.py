"""`recommend`: the least of the table within any budget, with its runners-up and warnings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.budget import Budget, Spend
from planner.costs import ClusterConfig, estimate, parse_cluster, resolve_cluster
from planner.costs.cluster import DeviceOverrides
from planner.curves import ScalingLaw, best_sizes, fit, optimal_allocation
from planner.errors import ConfigError, InfeasibleError
from planner.recommendation import (
    RANKED_BY,
    Recommendation,
    rank,
    recommend,
)
from planner.recommendation.choosing import _binding
from planner.recommendation.options import Table
from planner.recommendation.sizing import predict, size_at, worth
from planner.results import Results, read_results
from planner.run_folder import RunFolder
from planner.study import Study
from planner.trial import TrialState

LIMITS = {
    "flops": 1e15,
    "device_hours": 5.0,
    "usd": 0.4,
    "seconds": 7200.0,
    "kwh": 0.05,
}


@pytest.fixture(scope="module")
def answer(law: ScalingLaw, results: Results) -> Recommendation:
    return recommend(law, Budget(flops=1e15), results.study, results=results)


def test_the_choice_is_the_least_of_the_exported_table(answer: Recommendation) -> None:
    document = json.loads(answer.to_json())
    eligible = [row for row in document["table"] if row["is_eligible"]]
    least = min(eligible, key=lambda row: [row[name] for name in document["ranked_by"]])
    assert len(document["table"]) > len(eligible) > 5
    assert document["choice"] == least
    assert document["ranked_by"] == list(RANKED_BY)


@pytest.mark.parametrize(("unit", "limit"), LIMITS.items(), ids=list(LIMITS))
def test_a_budget_in_any_unit_is_filled_to_the_last_step_and_not_exceeded(
    unit: str, limit: float, law: ScalingLaw, results: Results
) -> None:
    found = recommend(law, Budget(**{unit: limit}), results.study, results=results)
    row = found.choice
    spent = row.train_flops if unit == "flops" else getattr(row, unit)
    step = spent / row.num_steps
    assert found.binding[0] == unit
    assert limit - 2 * step < spent <= limit * (1 + 1e-6)
    assert found.headroom[unit] == pytest.approx(limit - spent)
    assert row.loss_lower < row.predicted_loss < row.loss_upper


def test_of_several_limits_the_tightest_binds_and_is_named(
    law: ScalingLaw, results: Results
) -> None:
    alone = {
        unit: recommend(law, Budget(**{unit: limit}), results.study, results=results)
        for unit, limit in LIMITS.items()
    }
    together = recommend(law, Budget(**LIMITS), results.study, results=results)
    row = together.choice
    assert together.binding[0] in LIMITS
    assert row.predicted_loss >= max(a.choice.predicted_loss for a in alone.values()) * 0.999
    for unit, limit in LIMITS.items():
        spent = row.train_flops if unit == "flops" else getattr(row, unit)
        assert spent <= limit * (1 + 1e-6)


@settings(max_examples=12, deadline=None)
@given(
    unit=st.sampled_from(sorted(LIMITS)),
    size=st.floats(0.3, 30.0),
    more=st.floats(1.05, 20.0),
)
def test_a_larger_budget_never_predicts_a_worse_loss(
    unit: str, size: float, more: float, law: ScalingLaw, results: Results
) -> None:
    losses = [
        recommend(
            law, Budget(**{unit: factor * LIMITS[unit]}), results.study, results=results
        ).choice.predicted_loss
        for factor in (size, size * more)
    ]
    # One optimizer step of rounding, and the size at which surface and profiles meet moves a little.
    assert losses[1] <= losses[0] * 1.001


def test_a_small_corpus_asks_for_a_larger_model_than_an_endless_one(
    law: ScalingLaw, results: Results
) -> None:
    sizes = [
        recommend(
            law,
            Budget(flops=1e15),
            results.study,
            results=replace(
                results,
                trials=tuple(replace(t, metrics={"unique_tokens": n}) for t in results.trials),
            ),
            max_params=10**9,
        ).choice.num_params
        for n in (2e6, 1e12)
    ]
    assert sizes[0] > sizes[1]


def test_no_option_has_more_than_twice_the_tokens_per_parameter_of_any_trial(
    answer: Recommendation, results: Results
) -> None:
    most = 2 * max(
        (t.train_tokens or 0) / (t.num_params or 1)
        for t in results.trials
        if t.state is TrialState.COMPLETED
    )
    assert answer.most_tokens_per_param == pytest.approx(most)
    assert all(row.train_tokens <= most * row.num_params for row in answer.table)
    assert any(row.binding == "tokens_per_param" for row in answer.table)


def test_the_interval_is_the_prediction_interval_of_the_law_at_the_choice(
    answer: Recommendation, law: ScalingLaw
) -> None:
    row = answer.choice
    expected = predict(
        law, row.num_params, worth(np.array(row.train_tokens), answer.unique_tokens), shift=answer.size_shift, level=answer.level,
        train_flops=row.train_flops,
    )  # fmt: skip
    assert row.predicted_loss == pytest.approx(float(expected.loss), rel=1e-9)
    assert answer.interval == pytest.approx(
        (float(expected.loss_lower), float(expected.loss_upper)), rel=1e-9
    )


def test_the_recommended_size_is_near_the_allocation_where_nothing_else_holds_it(
    law: ScalingLaw, results: Results
) -> None:
    endless = replace(results, trials=tuple(replace(trial, metrics={}) for trial in results.trials))
    found = recommend(law, Budget(flops=1e15), results.study, results=endless, max_params=10**9)
    row = found.choice
    best = optimal_allocation(law, 6.0 * row.num_params * row.train_tokens).num_params
    assert found.most_tokens_per_param is None
    assert abs(np.log(row.num_params / best)) < 0.4
    low, high = found.best_num_params[1:]
    assert low <= best * 1.01
    assert high >= best * 0.99


def test_centring_the_prediction_puts_its_optimum_where_the_allocation_is(law: ScalingLaw) -> None:
    size = size_at(law, 1e6, 1e8, 0.9)
    sizes = np.geomspace(1e4, 1e8, 4001)
    losses = predict(law, sizes, 1e14 / sizes, shift=size.shift, level=0.9, train_flops=6e14).loss
    assert sizes[np.argmin(losses)] == pytest.approx(size.num_params, rel=0.05)


def test_the_recommended_configuration_fits_the_cluster_at_the_stated_cost(
    answer: Recommendation, results: Results
) -> None:
    config = answer.config
    cost = estimate(config, resolve_cluster(results.study.cluster))
    assert cost.fits
    assert cost.train_flops == pytest.approx(answer.choice.train_flops)
    assert cost.train_tokens == answer.choice.train_tokens
    assert cost.num_params == answer.choice.num_params
    assert config.layout.num_workers == answer.choice.num_workers


def test_three_runners_up_differ_from_the_choice_and_say_what_they_give_up(
    answer: Recommendation,
) -> None:
    assert len(answer.runners_up) == 3
    kinds = {
        (r.option.num_layers, r.option.d_model, r.option.precision, r.option.num_workers)
        for r in answer.runners_up
    }
    assert len(kinds) == 3
    for runner in answer.runners_up:
        assert rank(runner.option) >= rank(answer.choice) or not runner.option.is_eligible
        assert runner.gives_up
        assert runner.gains


def test_json_holds_the_whole_recommendation(answer: Recommendation) -> None:
    assert Recommendation.from_json(answer.to_json()) == Recommendation.from_json(
        Recommendation.from_json(answer.to_json()).to_json()
    )
    assert Recommendation.from_json(answer.to_json()).choice == answer.choice


@pytest.mark.parametrize(
    "text",
    ["not json", "[]", '{"schema": "planner.recommendation/0"}', '{"schema": "planner.recommendation/2"}'],
    ids=["text", "list", "other schema", "empty"],
)  # fmt: skip
def test_a_damaged_recommendation_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"recommendation"):
        Recommendation.from_json(text)


def test_a_budget_that_trains_nothing_is_refused_with_the_smallest_change_that_helps(
    law: ScalingLaw, results: Results
) -> None:
    with pytest.raises(InfeasibleError, match="at least 20 optimizer steps") as caught:
        recommend(law, Budget(flops=1e6), results.study, results=results)
    assert caught.value.hint is not None
    need = float(caught.value.hint.split("at least ")[1].split(" ")[0])
    found = recommend(law, Budget(flops=need), results.study, results=results)
    assert found.choice.num_steps >= 20


def test_a_deadline_too_short_beside_enough_flops_is_named(
    law: ScalingLaw, results: Results
) -> None:
    with pytest.raises(InfeasibleError) as caught:
        recommend(law, Budget(flops=1e18, seconds=0.5), results.study, results=results)
    assert "raise seconds" in str(caught.value)


def test_a_device_with_too_little_memory_is_refused_with_what_would_be_needed(
    law: ScalingLaw, results: Results
) -> None:
    tiny = ClusterConfig(device="cpu", device_overrides=DeviceOverrides(memory_bytes=2e8))
    with pytest.raises(InfeasibleError, match="nothing fits the memory"):
        recommend(law, Budget(flops=1e15), results.study, results=results, cluster=tiny)


def test_no_model_is_larger_than_the_cap_and_the_cap_is_said_to_bind(
    law: ScalingLaw, results: Results
) -> None:
    found = recommend(law, Budget(flops=1e16), results.study, results=results, max_params=100_000)
    assert found.choice.num_params <= 100_000
    assert "max_params" in found.binding
    with pytest.raises(InfeasibleError, match="at most 10 parameters"):
        recommend(law, Budget(flops=1e16), results.study, results=results, max_params=10)


@pytest.mark.parametrize(
    ("column", "is_held"), [("num_params", False), ("num_params_non_embedding", True)]
)
def test_what_holds_a_size_is_found_in_the_count_of_the_law(
    column: str, is_held: bool, answer: Recommendation, law: ScalingLaw, results: Results
) -> None:
    counted = replace(law, columns={"num_params": column})
    best = int(optimal_allocation(law, answer.choice.train_flops).num_params)
    choice = replace(answer.choice, num_params=2 * best, num_params_non_embedding=best // 2)
    cost = estimate(answer.config, resolve_cluster(results.study.cluster))
    misfit = replace(cost, num_params=3 * best, num_params_non_embedding=best - 1)
    table = Table(options=(choice,), configs=(), too_large=(misfit,), shortfalls=(), rejected={})
    held = _binding(choice, table, counted, 2 * best)
    assert held[1:] == (("max_params", "memory") if is_held else ())


def test_a_budget_in_money_needs_a_price(law: ScalingLaw, results: Results) -> None:
    free = ClusterConfig(device="cpu", devices_per_node=2)
    with pytest.raises(ConfigError, match="usd_per_device_hour"):
        recommend(law, Budget(usd=1.0), results.study, results=results, cluster=free)


def test_another_cluster_is_estimated_in_bf16_and_says_what_was_not_tried(
    law: ScalingLaw, results: Results
) -> None:
    place = parse_cluster("8xh100-sxm")
    found = recommend(law, Budget(flops=1e20), results.study, results=results, cluster=place)
    codes = {warning.code for warning in found.warnings}
    assert found.choice.precision == "bf16"
    assert {"precision_not_tried", "speed_not_measured", "extrapolation"} <= codes
    assert found.choice.num_workers > 1
    assert not found.calibration.is_measured


def test_a_deadline_makes_every_layout_eligible_and_is_kept(
    law: ScalingLaw, results: Results
) -> None:
    place = parse_cluster("8xh100-sxm")
    free = recommend(law, Budget(flops=1e19), results.study, results=results, cluster=place)
    seconds = free.choice.seconds / 4
    found = recommend(
        law, Budget(flops=1e19, seconds=seconds), results.study, results=results, cluster=place
    )
    assert found.choice.seconds <= seconds
    assert all(row.is_eligible for row in found.table)
    assert found.choice.predicted_loss >= free.choice.predicted_loss


def test_warnings_name_extrapolation_the_edge_and_repeated_data(
    law: ScalingLaw, results: Results
) -> None:
    far = recommend(law, Budget(flops=1e18), results.study, results=results)
    codes = {warning.code: warning for warning in far.warnings}
    assert {"extrapolation", "edge_of_space", "repeated_data", "tokens_outside_fit"} <= set(codes)
    assert codes["extrapolation"].value == pytest.approx(far.extrapolation_factor)
    assert far.confidence == "low"
    assert "workers_not_measured" in codes
    near = recommend(law, Budget(flops=5e13), results.study, results=results)
    assert "extrapolation" not in {warning.code for warning in near.warnings}


def test_without_results_the_space_gives_the_shapes_and_the_rate_is_the_studys_own(
    law: ScalingLaw, results: Results
) -> None:
    found = recommend(law, Budget(flops=1e14), results.study)
    codes = {warning.code for warning in found.warnings}
    assert "learning_rate_not_swept" in codes
    assert "speed_not_measured" in codes


def test_the_default_budget_is_the_target_or_ten_times_the_study(results: Results) -> None:
    study = results.study
    assert study.target_budget.limits() == {"device_hours": 20.0}
    aimed = study.replace(target=Budget(flops=1e18))
    assert aimed.target_budget == Budget(flops=1e18)


def test_the_sentence_names_shape_tokens_rate_loss_and_cost(answer: Recommendation) -> None:
    text = str(answer)
    row = answer.choice
    assert f"{row.num_layers} layers, width {row.d_model}" in text
    assert f"{row.predicted_loss:.3f} (90% interval {row.loss_lower:.3f}" in text
    assert Budget(flops=1e15).exceeded_by(Spend(flops=row.train_flops)) is None


def test_what_is_recommended_keeps_the_constraints_that_bind_any_training(
    law: ScalingLaw, results: Results
) -> None:
    study = results.study
    free = recommend(law, study.target_budget, study, results=results).choice
    cap = 0.5 * free.num_params
    bound = study.replace(
        constraints=[{"metric": "num_params", "max": cap}, {"metric": "usd", "max": 1e-9}]
    )
    answer = recommend(law, study.target_budget, bound, results=results)
    assert answer.choice.num_params <= cap
    assert any("num_params" in reason for reason in answer.rejected)
    nothing = study.replace(constraints=[{"metric": "num_params", "max": 10.0}])
    with pytest.raises(InfeasibleError, match="must keep the study's constraints"):
        recommend(law, study.target_budget, nothing, results=results)


def test_losses_during_the_trials_give_a_third_opinion_of_the_best_size(
    run_factory: Callable[..., RunFolder], study_factory: Callable[..., Study]
) -> None:
    shapes = [
        {"num_layers": 2, "d_model": width, "num_heads": 2}
        for width in (16, 24, 36, 56, 80, 120, 180)
    ]
    space = study_factory().search_space.model_dump(mode="json")
    space["parameters"]["model"]["choice"] = shapes
    space["parameters"]["train.tokens"]["choice"] = [2**22, 2**24, 2**26]
    results = read_results(run_factory(study_factory(search_space=space), noise=0.001))
    law = fit(results, num_bootstraps=50)
    answer = recommend(law, Budget(flops=1e15), results.study, results=results)
    said = {item.method: item for item in answer.best_sizes}
    assert said["envelope"].exponent == pytest.approx(0.5, abs=0.1)
    assert said["isoflop"].refusal is not None
    both = [said[name].num_params for name in ("surface", "envelope")]
    assert said["recommended"].num_params == pytest.approx(np.sqrt(np.prod(both)))
    assert said["recommended"].num_params == pytest.approx(answer.best_num_params[0])
    assert Recommendation.from_json(answer.to_json()).best_sizes == answer.best_sizes
    alone = replace(law, frontiers={})
    assert [item.method for item in best_sizes(alone)] == ["surface", "isoflop", "recommended"]
