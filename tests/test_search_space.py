"""Points lie in their space, come in a fixed order, and obey conditions and constraints."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.config import parse_config
from planner.errors import ConfigError
from planner.expressions import Expression
from planner.search_space import Distribution, SearchSpace, grid_points, merge, quasi_random_points


def space(**parameters) -> SearchSpace:
    return parse_config({"name": "s", "parameters": parameters}, SearchSpace)


positions = st.floats(min_value=0, max_value=1, exclude_max=True)
numeric = st.sampled_from(
    [
        Distribution(uniform=(-2.0, 3.0)),
        Distribution(loguniform=(1e-5, 10.0)),
        Distribution(randint=(1, 7)),
        Distribution(lograndint=(1, 1000)),
        Distribution(uniform=(0.0, 1.0), q=0.25),
        Distribution(choice=("a", 2, None)),
    ]
)


@given(numeric, positions)
def test_every_position_gives_a_value_of_the_distribution(distribution, position):
    assert distribution.contains(distribution.from_unit(position))


def test_whole_numbers_include_both_ends_evenly():
    drawn = [Distribution(randint=(1, 4)).from_unit(i / 400) for i in range(400)]
    assert {value: drawn.count(value) for value in drawn} == {1: 100, 2: 100, 3: 100, 4: 100}


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ({}, "exactly one"),
        ({"choice": [1], "uniform": [0, 1]}, "exactly one"),
        ({"choice": []}, "at least one value"),
        ({"choice": [1, 1]}, "must not repeat"),
        ({"uniform": [2, 1]}, "low < high"),
        ({"loguniform": [0, 1]}, "low > 0"),
        ({"uniform": [0, 1, 2]}, "at most 2"),
        ({"choice": [1], "when": "import os"}, "cannot be read"),
        ({"choice": [1], "when": "__import__('os')"}, "may hold"),
        ({"choice": [1], "when": "'model'.d_model > 2"}, "may hold"),
    ],
)
def test_a_distribution_that_breaks_a_rule_is_refused(written, rule):
    with pytest.raises(ConfigError, match=rule):
        parse_config(written, Distribution)


def test_a_space_without_parameters_is_refused():
    with pytest.raises(ConfigError, match="at least one parameter"):
        space()


def test_a_grid_holds_every_combination_once_the_last_fastest():
    points = list(grid_points(space(a={"choice": [1, 2]}, b={"randint": [0, 2]}), {}))
    assert points == [{"a": a, "b": b} for a in (1, 2) for b in (0, 1, 2)]


def test_a_conditional_parameter_exists_only_where_its_condition_holds():
    conditional = space(a={"choice": [1, 2]}, b={"choice": [10, 20], "when": "a == 2"})
    assert list(grid_points(conditional, {})) == [{"a": 1}, {"a": 2, "b": 10}, {"a": 2, "b": 20}]


@pytest.mark.parametrize(
    "distribution",
    [
        Distribution(uniform=(5.0, 95.0), q=10),
        Distribution(randint=(1, 10), q=3),
        Distribution(uniform=(0.0, 1.0), q=0.25),
        Distribution(lograndint=(2, 9)),
    ],
    ids=str,
)
def test_a_grid_has_every_value_that_can_be_drawn_once(distribution):
    values = distribution.values()
    assert {distribution.from_unit(i / 5000) for i in range(5000)} <= set(values)
    assert sorted(set(values)) == list(values)
    assert len(values) == distribution.num_values()


@pytest.mark.parametrize("name", ["b", "b.c", "a"])
def test_a_condition_on_a_parameter_that_comes_later_is_refused(name):
    with pytest.raises(ConfigError, match=f"that of a speaks of {name}, and {name[0]} does not"):
        space(a={"choice": [1, 2], "when": f"x > 1 or {name} == 2"}, b={"choice": [{"c": 2}]})


def test_a_grid_of_real_numbers_is_refused_with_the_parameter():
    with pytest.raises(ConfigError, match="parameter a: uniform has no finite list"):
        list(grid_points(space(a={"uniform": [0, 1]}), {}))


@given(st.integers(min_value=0, max_value=2**31))
def test_quasi_random_points_depend_on_the_seed_alone(seed):
    two = space(a={"uniform": [0, 1]}, b={"loguniform": [1, 10]})
    first = list(itertools.islice(quasi_random_points(two, {}, seed), 20))
    assert first == list(itertools.islice(quasi_random_points(two, {}, seed), 20))
    assert len({point["a"] for point in first}) == 20


def test_quasi_random_points_fill_a_square_more_evenly_than_chance():
    two = space(a={"uniform": [0, 1]}, b={"uniform": [0, 1]})
    points = list(itertools.islice(quasi_random_points(two, {}, 3), 64))
    cells = {(int(p["a"] * 8), int(p["b"] * 8)) for p in points}
    expected_by_chance = 64 * (1 - math.exp(-1))
    assert len(cells) > expected_by_chance + 8


def test_a_choice_of_mappings_is_merged_into_the_fixed_settings():
    base = {"model": {"num_layers": 2, "d_model": 8}}
    assert merge(base, {"model": {"d_model": 16}})["model"] == {"num_layers": 2, "d_model": 16}
    assert base == {"model": {"num_layers": 2, "d_model": 8}}


def test_a_broken_constraint_is_named():
    tight = parse_config(
        {"name": "s", "parameters": {"a": {"choice": [1, 2]}}, "constraints": ["a < b.c"]},
        SearchSpace,
    )
    assert tight.broken_constraint({"a": 1}, {"b": {"c": 2}}) is None
    assert tight.broken_constraint({"a": 2}, {"b": {"c": 2}}) == "a < b.c"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b % 2 == 0 and a.b > 2", True),
        ("a.b in [4, 8]", True),
        ("not (a.b == 4 or c)", False),
        ("1 < a.b < 5", True),
        ("missing > 3", False),
        ("missing == None", True),
        ("-a.b + 2 * 3 // 2 - 1 / 2", -1.5),
        ("a.name == 'x'", True),
    ],
)
def test_conditions_are_evaluated(text, value):
    assert Expression.parse(text).of({"a": {"b": 4, "name": "x"}, "c": False}) == value


@pytest.mark.parametrize("text", ["a.name < 3", "1 / (a.b - 4) > 0"])
def test_a_condition_whose_values_do_not_fit_is_an_error_of_the_user(text):
    with pytest.raises(ConfigError, match="cannot be evaluated"):
        Expression.parse(text).of({"a": {"b": 4, "name": "x"}})
