"""A study is checked as a whole when it is loaded, and resolved completely."""

import json

import pytest

from planner import library
from planner.errors import ConfigError, NotFoundError
from planner.study import load_study, study_from_json, trial_config


def refusal(source, *overrides, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        load_study(source, overrides, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", library.names("studies"))
def test_every_shipped_study_loads_and_survives_its_own_json(name):
    study = load_study(name)
    assert study_from_json(study.model_dump_json()) == study


@pytest.mark.parametrize("name", library.names("search_spaces"))
def test_every_shipped_search_space_is_used_by_a_shipped_study(name):
    assert name in {load_study(study).search_space.name for study in library.names("studies")}


def test_an_unknown_study_is_not_found_and_the_closest_is_named():
    with pytest.raises(NotFoundError, match="Did you mean 'quickstart'"):
        load_study("quikstart")


def test_an_unknown_search_space_names_its_line_and_the_closest(write_study):
    found = refusal(write_study(search_space="tiny-lader"))
    assert "study.yaml:2: search_space: no search space named 'tiny-lader'" in found
    assert "Did you mean 'tiny-ladder'?" in found


def test_an_unknown_parameter_is_refused_with_the_closest_setting(write_study):
    space = {"name": "s", "parameters": {"optimizer.learnign_rate": {"choice": [1e-3]}}}
    found = refusal(write_study(search_space=space))
    assert "optimizer.learnign_rate: no such setting of a trial" in found
    assert "Did you mean 'optimizer.learning_rate'?" in found


def test_an_empty_space_is_refused(write_study):
    assert "at least one parameter" in refusal(
        write_study(search_space={"name": "s", "parameters": {}})
    )


def test_a_mistake_in_the_fixed_settings_is_shown_at_its_line(write_study):
    found = refusal(write_study(base={"train": {"tokens": "many"}}))
    assert "study.yaml:" in found
    assert "train.tokens: Input should be a valid integer (got 'many')" in found


def test_a_rule_that_every_point_breaks_is_shown(write_study):
    found = refusal(write_study(), "base.layout.data_parallel=3")
    assert "data_parallel * shard_parallel must divide sequences_per_step" in found
    assert "Use one of 1, 2, 4" in found


def test_a_space_of_which_some_points_are_valid_loads(write_study):
    study = load_study(write_study(), ["base.layout.tensor_parallel=2"])
    assert study.base["layout"] == {"tensor_parallel": 2}


def test_overrides_are_applied_and_recorded(write_study):
    study = load_study(write_study(), ["budget.usd=3e-4", "search.num_trials=2"])
    assert study.budget.usd == 3e-4
    assert study.overrides == ("budget.usd=3e-4", "search.num_trials=2")


def test_another_search_space_can_be_chosen_by_name(write_study):
    base = {"model": {"num_layers": 1, "d_model": 16}, "train": {"tokens": 65536}}
    study = load_study(write_study(base=base), search_space="batch-and-lr")
    assert study.search_space.name == "batch-and-lr"
    assert study.overrides == ('search_space="batch-and-lr"',)


def test_the_digest_changes_with_what_is_run_and_not_with_the_budget(write_study):
    study = load_study(write_study())
    assert load_study(write_study(), ["budget.device_hours=7"]).digest == study.digest
    assert load_study(write_study(), ["search.seed=7"]).digest != study.digest
    assert load_study(write_study(), ["base.train.tokens=8192"]).digest != study.digest


def test_a_search_without_an_end_is_refused(write_study):
    assert "random search needs num_trials" in refusal(write_study(search={"algorithm": "random"}))


def test_a_scheduler_is_given_by_name_or_with_its_settings(write_study):
    by_name = load_study(write_study(), ["search.scheduler=asha"])
    written_out = load_study(write_study(), ["search.scheduler={name: asha}"])
    assert by_name.search.scheduler == written_out.search.scheduler


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("<script>alert(1)</script>", "script-alert-1---script"),
        ("../../etc", "etc"),
        ("...", "study"),
        ("a b", "a-b"),
    ],
)
def test_a_name_never_leaves_the_folder_of_runs(small_study, name, folder):
    assert small_study.replace(name=name).folder_name == folder


@pytest.mark.parametrize(
    ("length", "tokens"),
    [({"tokens": 4000}, 3968), ({"flops": 1e9}, None), ({"tokens_per_param": 1.0}, None)],
    ids=["tokens", "flops", "tokens_per_param"],
)
def test_a_trial_is_resolved_to_whole_steps_of_tokens(write_study, length, tokens):
    study = load_study(write_study(base={"model": {"sequence_length": 32}, "train": length,
                                         "batch": {"sequences_per_step": 4}}))  # fmt: skip
    model = {"num_layers": 1, "d_model": 16, "num_heads": 2}
    config = trial_config(study, {"model": model})
    assert config.train.tokens is not None
    assert config.train.tokens % config.tokens_per_step == 0
    assert (config.train.flops, config.train.tokens_per_param) == (None, None)
    assert tokens is None or config.train.tokens == tokens


def test_what_is_not_json_is_refused():
    with pytest.raises(ConfigError, match="not valid JSON"):
        study_from_json("{")
    with pytest.raises(ConfigError, match="search_space: required key is missing"):
        study_from_json(json.dumps({"name": "a"}))
