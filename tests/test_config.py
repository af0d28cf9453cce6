"""The strict reader: every problem at once, with its place, its rule and its value."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.config import Config, Count, Name, PositiveFloat, load_config, parse_config, parse_yaml
from planner.errors import ConfigError


class Limits(Config):
    usd: PositiveFloat | None = None
    flops: PositiveFloat | None = None


class Plan(Config):
    name: Name
    limits: Limits = Limits()
    num_trials: Count = 3
    scheduler: Literal["asha", "none"] = "none"
    sizes: tuple[int, ...] = ()


def problems_of(tmp_path, text: str) -> list[str]:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, Plan)
    return [line.strip().replace(str(path), "plan.yaml") for line in str(caught.value).split("\n")]


def load(tmp_path, text: str, *overrides: str) -> Plan:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return load_config(path, Plan, overrides)


def test_every_problem_of_a_file_is_listed_with_line_rule_value_and_suggestion(tmp_path):
    found = problems_of(
        tmp_path,
        "name: a\nlimits: {usd: lots, flosp: 1e19}\nnum_trials: 2.5\nscheduler: asah\n"
        "schedular: none\n",
    )
    assert found == [
        "plan.yaml is not a valid Plan (5 problems)",
        "plan.yaml:2: limits.usd: Input should be a valid number (got 'lots')",
        "plan.yaml:2: limits.flosp: unknown key; did you mean 'flops'?",
        "plan.yaml:3: num_trials: Input should be a valid integer (got 2.5)",
        "plan.yaml:4: scheduler: Input should be 'asha' or 'none' (got 'asah'). "
        "Did you mean 'asha'?",
        "plan.yaml:5: schedular: unknown key; did you mean 'scheduler'?",
    ]


def test_a_repeated_key_is_refused_and_names_both_lines(tmp_path):
    found = problems_of(tmp_path, "name: a\nlimits:\n  usd: 1\n  usd: 2\n")
    assert "plan.yaml:4: limits.usd: a key may be given once (first given at line 3)" in found


def test_a_missing_key_is_named(tmp_path):
    assert "plan.yaml:1: name: required key is missing" in problems_of(tmp_path, "num_trials: 1\n")


def test_keys_that_are_not_text_are_refused(tmp_path):
    found = problems_of(tmp_path, "name: a\n1: 2\n")
    assert found[1] == "plan.yaml:2: keys must be text (got '1'); put it in quotes"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e19", 1e19), ("3e-4", 3e-4), ("2.5", 2.5), ("7", 7.0), (".5", 0.5), ("1_000", 1000.0)],
)
def test_numbers_are_read_as_numbers(tmp_path, text, value):
    assert load(tmp_path, f"name: a\nlimits: {{usd: {text}}}\n").limits.usd == value


@pytest.mark.parametrize("text", ["no", "off", "1:30", "2024-01-01", "017", "yes"])
def test_text_that_old_yaml_reads_as_something_else_stays_text(tmp_path, text):
    assert load(tmp_path, f"name: {text}\n").name == text


def test_a_whole_float_is_a_count_and_a_list_fills_a_tuple(tmp_path):
    plan = load(tmp_path, "name: a\nnum_trials: 2e3\nsizes: [1, 2]\n")
    assert (plan.num_trials, plan.sizes) == (2000, (1, 2))


@pytest.mark.parametrize("text", [".inf", ".nan", "1e999"])
def test_numbers_that_are_not_finite_are_refused(tmp_path, text):
    assert "limits.usd" in problems_of(tmp_path, f"name: a\nlimits: {{usd: {text}}}\n")[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2", "not valid YAML"),
        ("- a\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: &x [*x]\n", "aliases"),
        ("name: !!python/object:os.system x\n", "tags are not allowed"),
        ("a: 'open\n", "not valid YAML"),
        ("a: b\x00c\n", "not valid YAML"),
        (f"a: {'[' * 60}{']' * 60}\n", "must not nest deeper than 50"),
        (f"a: {'[' * 3000}{']' * 3000}\n", "must not nest deeper than 50"),
        (f"name: a\nnum_trials: {'1' * 5000}\n", "at most 100 digits (got 5000)"),
    ],
    ids=["syntax", "list", "empty", "cycle", "tag", "quote", "control", "deep", "abyss", "digits"],
)
def test_what_is_not_a_mapping_of_plain_values_is_refused(tmp_path, text, message):
    assert message in "\n".join(problems_of(tmp_path, text))


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="must be UTF-8"):
        load_config(path, Plan)


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path, Plan)


def test_an_override_replaces_a_value_and_is_named_in_problems(tmp_path):
    assert load(tmp_path, "name: a\n", "limits.usd=3e-4").limits.usd == 3e-4
    with pytest.raises(ConfigError, match=r"--set limits\.usd=lots: limits\.usd: .*got 'lots'"):
        load(tmp_path, "name: a\n", "limits.usd=lots")


@pytest.mark.parametrize("text", ["usd", "=3", "a..b=3"])
def test_an_override_without_key_or_value_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="--set takes"):
        load(tmp_path, "name: a\n", text)


def test_replace_validates_again():
    plan = parse_config({"name": "a"}, Plan)
    assert plan.replace(num_trials=7).num_trials == 7
    with pytest.raises(ConfigError, match="num_trials"):
        plan.replace(num_trials=-5)


def test_true_is_not_a_number_and_a_number_is_not_text():
    with pytest.raises(ConfigError, match="num_trials"):
        parse_config({"name": "a", "num_trials": True}, Plan)
    with pytest.raises(ConfigError, match="name"):
        parse_config({"name": 3}, Plan)


@given(st.text())
def test_any_text_is_either_read_or_refused_with_a_planner_error(text):
    try:
        document = parse_yaml(text, "any.yaml")
    except ConfigError:
        return
    assert isinstance(document.data, dict)
