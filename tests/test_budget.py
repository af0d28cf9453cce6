"""A budget limits any subset of what can be spent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.budget import Budget, Spend
from planner.config import parse_config
from planner.errors import ConfigError

amounts = st.floats(min_value=0, max_value=1e12)


def test_an_empty_budget_is_refused():
    with pytest.raises(ConfigError, match="at least one of"):
        parse_config({}, Budget)


@pytest.mark.parametrize("text", ["0 usd", "1e400 flops", "1 usd, 0 kwh"])
def test_an_amount_that_is_not_above_0_or_without_end_is_refused(text):
    with pytest.raises(ConfigError, match=r"greater than 0 \(got 0\.0\)|below 1\.8e308"):
        Budget.parse(text)


def test_the_limit_that_is_exceeded_most_is_named():
    budget = Budget(usd=10.0, device_hours=1.0)
    assert budget.exceeded_by(Spend(usd=9.0, device_hours=0.5)) is None
    assert budget.exceeded_by(Spend(usd=11.0, device_hours=3.0)) == "device_hours"


def test_adding_a_budget_raises_the_limits_that_are_set():
    assert Budget(usd=10.0).plus(Budget(usd=5.0)).limits() == {"usd": 15.0}


def test_adding_a_new_unit_sets_a_new_limit():
    assert Budget(usd=10.0).plus(Budget(flops=1e18)).limits() == {"usd": 10.0, "flops": 1e18}


@given(amounts, amounts)
def test_spending_adds_up_and_what_remains_falls_by_it(first, second):
    budget = Budget(usd=1e13)
    total = Spend(usd=first) + Spend(usd=second)
    assert total.usd == first + second
    assert budget.remaining(total)["usd"] == pytest.approx(1e13 - first - second)
    assert (budget.spent_fraction(total) >= 1) == (budget.exceeded_by(total) is not None)
