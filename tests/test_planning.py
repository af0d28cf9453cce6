"""The plan prices everything, rejects what cannot run with its reason, and starts nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import library
from planner.budget import Spend
from planner.costs import resolve_cluster, tracing
from planner.costs.tracing import Traces
from planner.errors import BudgetError, ConfigError, InfeasibleError
from planner.planning import candidate, plan
from planner.results import Results, read_measured
from planner.run_folder import RunFolder
from planner.study import load_study
from planner.trial import TrialResult, TrialState


@pytest.mark.parametrize("name", library.names("studies"))
def test_every_shipped_study_plans_within_its_budget(name):
    outlook = plan(load_study(name))
    assert all(need <= limit for need, limit in outlook.bill().values())


def test_a_plan_is_the_same_every_time(small_study):
    assert plan(small_study) == plan(small_study)


def test_as_many_trials_are_planned_as_were_asked_for(write_study):
    outlook = plan(load_study(write_study(), ["search.num_trials=7"]))
    assert [c.trial for c in outlook.feasible] == [f"t{i:03d}" for i in range(7)]


def test_the_total_is_the_sum_of_the_trials(small_study):
    outlook = plan(small_study)
    costs = [c.cost for c in outlook.feasible]
    assert outlook.total.flops == pytest.approx(sum(c.train_flops for c in costs))
    assert outlook.total.device_hours == pytest.approx(sum(c.device_hours for c in costs))
    assert outlook.total.seconds * 2 >= outlook.total.device_hours * 3600 * 0.999


def test_a_trial_with_more_workers_than_devices_is_rejected_with_both_numbers(write_study):
    study = load_study(write_study(), ["base.layout.data_parallel=4"])
    with pytest.raises(InfeasibleError, match="4 workers, 2 devices"):
        plan(study)


def test_a_layout_that_the_engine_refuses_is_infeasible_in_the_plan_with_its_reason(write_study):
    space = {"name": "s", "parameters": {"optimizer.name": {"choice": ["adamw", "adafactor"]}}}
    base = {"model": {"num_layers": 1, "d_model": 16, "num_heads": 2}, "train": {"tokens": 4096},
            "layout": {"shard_parallel": 2}}  # fmt: skip
    study = load_study(write_study(search_space=space, base=base, search={"algorithm": "grid"}))
    outlook = plan(study)
    assert [c.is_feasible for c in outlook.candidates] == [True, False]
    assert "adafactor keeps means over whole rows" in (outlook.rejected[0].reason or "")


def test_points_that_break_a_constraint_are_rejected_and_replaced(write_study):
    space = {
        "name": "s",
        "parameters": {"model": {"choice": [{"num_layers": 1, "d_model": 16, "num_heads": 2},
                                            {"num_layers": 2, "d_model": 32, "num_heads": 2}]}},
        "constraints": ["model.num_layers <= 1"],
    }  # fmt: skip
    outlook = plan(load_study(write_study(search_space=space)))
    assert len(outlook.feasible) == 4
    assert outlook.rejected[0].reason == "breaks the constraint 'model.num_layers <= 1'."


def test_a_grid_is_planned_whole(write_study):
    space = {"name": "s", "parameters": {"optimizer.learning_rate": {"choice": [1e-3, 2e-3, 3e-3]}}}
    base = {"model": {"num_layers": 1, "d_model": 16, "num_heads": 2}, "train": {"tokens": 4096}}
    outlook = plan(load_study(write_study(search_space=space, base=base,
                                          search={"algorithm": "grid"})))  # fmt: skip
    assert [c.point["optimizer.learning_rate"] for c in outlook.candidates] == [1e-3, 2e-3, 3e-3]
    assert not outlook.is_sample


def test_a_budget_too_small_for_one_trial_is_refused_with_both_amounts(write_study):
    study = load_study(write_study(), ["budget.device_hours=1e-9"])
    with pytest.raises(BudgetError, match="at least one trial: the cheapest needs about"):
        plan(study)


def test_a_budget_in_dollars_needs_a_price(write_study):
    study = load_study(write_study(), ["budget.usd=5"])
    with pytest.raises(ConfigError, match="usd_per_device_hour"):
        plan(study)
    priced = load_study(write_study(), ["budget.usd=5", "cluster.usd_per_device_hour=0.05"])
    assert plan(priced).total.usd == pytest.approx(plan(priced).total.device_hours * 0.05)


@settings(deadline=None)
@given(st.integers(min_value=1, max_value=12), st.integers(min_value=0, max_value=99))
def test_more_devices_never_take_longer(num_devices, seed):
    base = load_study("quickstart", [f"search.seed={seed}", "search.num_trials=9"])

    def seconds(devices: int) -> float:
        cluster = base.cluster.replace(devices_per_node=devices)
        return plan(base.replace(cluster=cluster)).total.seconds

    assert seconds(num_devices + 2) <= seconds(2) * 1.0001


def write_run(study, root, *, slowdown, name="earlier"):
    """Write a finished run whose trials took longer than estimated by a factor."""
    folder = RunFolder.create(study, name, root)
    trials = tuple(
        TrialResult(
            trial=c.trial,
            config=c.config.model_dump(mode="json"),
            state=TrialState.COMPLETED,
            num_steps=100,
            tokens_per_second=c.config.tokens_per_step / (slowdown * c.cost.step_seconds),
            peak_memory_bytes=5e8,
        )
        for c in plan(study).feasible
    )
    Results(study=study, trials=trials, curves=(), spend=Spend(), folder=folder).write()


def test_finished_runs_on_the_same_cluster_calibrate_the_next_plan_and_are_named_in_it(
    small_study, tmp_path
):
    assert read_measured(small_study.cluster, tmp_path) is None
    write_run(small_study, tmp_path, slowdown=3.0)
    found = plan(small_study, measured=read_measured(small_study.cluster, tmp_path))
    before = plan(small_study)
    assert found.calibrated_on == (("earlier", len(before.feasible)),)
    assert found.to_data()["calibrated_on"][0]["run"] == "earlier"
    ratios = [
        new.cost.step_seconds / old.cost.step_seconds
        for new, old in zip(found.feasible, before.feasible, strict=True)
    ]
    assert ratios == pytest.approx([3.0] * len(ratios), rel=0.1)
    assert all(c.cost.step_seconds_lower < c.cost.step_seconds for c in found.feasible)
    assert found == plan(small_study, measured=read_measured(small_study.cluster, tmp_path))


def test_runs_on_another_cluster_and_damaged_ones_calibrate_nothing(small_study, tmp_path):
    write_run(small_study, tmp_path, slowdown=3.0)
    other = small_study.cluster.replace(device="h100-sxm", devices_per_node=8)
    assert read_measured(other, tmp_path) is None
    (tmp_path / "earlier" / "results.parquet").write_bytes(b"not a table")
    assert read_measured(small_study.cluster, tmp_path) is None


def near_the_limit(write_study, cluster=None, **changes):
    """Return a study whose two trials share a shape that needs nearly all of the memory."""
    base = {
        "model": {"num_layers": 2, "d_model": 128, "sequence_length": 256, "vocab_size": 2048},
        "batch": {"sequences_per_step": 8},
        "train": {"tokens": 8192, "num_validations": 1, "validation_tokens": 1024},
    }
    space = {"name": "s", "parameters": {"optimizer.learning_rate": {"choice": [1e-3, 2e-3]}}}
    study = load_study(
        write_study(
            search_space=space,
            base=base | changes,
            search={"algorithm": "grid"},
            cluster=cluster or {"device": "cpu", "devices_per_node": 2},
        )
    )
    return with_memory_of(study, plan(study).feasible[0].cost.peak_memory_bytes)


def with_memory_of(study, usable_bytes):
    """Return a study on a cluster of which a plan may fill so many bytes."""
    margin = resolve_cluster(study.cluster).memory_margin_fraction
    overrides = {"memory_bytes": usable_bytes / (1.0 - margin)}
    return study.replace(cluster=study.cluster.replace(device_overrides=overrides))


@pytest.mark.slow
def test_where_the_closed_form_is_near_the_limit_a_trace_decides_and_the_plan_says_so(write_study):
    study = near_the_limit(write_study)
    closed = plan(study).feasible[0].cost.peak_memory_bytes
    traces = Traces(max_seconds=300.0)
    roomy = plan(with_memory_of(study, 1.2 * closed), traces=traces)
    traced = roomy.feasible[0].cost.peak_memory_bytes
    assert (len(roomy.feasible), roomy.to_data()["num_memory_traces"]) == (2, 1)
    cluster = resolve_cluster(with_memory_of(study, (closed + traced) / 2).cluster)
    for number, seen in enumerate(roomy.feasible):
        before = candidate(study, cluster, f"t{number:03d}", seen.point)
        after = candidate(study, cluster, f"t{number:03d}", seen.point, traces=traces)
        assert (before.is_feasible, after.is_feasible) == (closed < traced, traced < closed)
        assert "traced from the engine's own model" in after.memory_note
        assert after.is_feasible or after.memory_note in after.reason
    assert traces.num_taken == 1


def test_without_the_engine_the_closed_form_stands_and_says_so(write_study, monkeypatch):
    monkeypatch.setattr(tracing, "find_spec", lambda _: None)
    study = near_the_limit(write_study)
    outlook = plan(study, traces=Traces())
    assert outlook.num_memory_traces == 0
    note = "Memory is by the closed form: the engine's torch is not installed"
    assert [c.memory_note for c in outlook.candidates] == [note, note]
    assert [c.cost for c in outlook.candidates] == [c.cost for c in plan(study).candidates]


def test_a_layout_that_no_trace_covers_keeps_the_closed_form_with_the_reason(write_study):
    study = near_the_limit(write_study, precision={"compute": "fp16"})
    outlook = plan(study, traces=Traces())
    assert outlook.num_memory_traces == 0
    assert outlook.candidates[0].memory_note.endswith("fp16 looks at its gradients")


def test_on_an_accelerator_the_closed_form_stands_and_says_so(write_study):
    on_gpus = {"device": "h100-sxm", "devices_per_node": 8}
    study = near_the_limit(write_study, cluster=on_gpus)
    outlook = plan(study, traces=Traces())
    assert outlook.num_memory_traces == 0
    assert outlook.candidates[0].memory_note.endswith("traces are checked on CPUs alone")


def test_traces_end_at_their_number_and_far_from_the_limit_there_are_none(small_study, write_study):
    outlook = plan(near_the_limit(write_study), traces=Traces(max_traces=0))
    assert outlook.candidates[0].memory_note.endswith("0 shapes are traced already, in 0 s")
    far = plan(small_study, traces=Traces())
    assert (far.num_memory_traces, {c.memory_note for c in far.candidates}) == (0, {None})
