"""Tables at the door."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from planner.curves import fit, points_from_table, read_points
from planner.errors import ConfigError, FitError, NotFoundError


@pytest.fixture
def table(sweep) -> pd.DataFrame:
    p = sweep()
    return pd.DataFrame({"num_params": p.num_params, "num_tokens": p.num_tokens, "loss": p.loss})


def test_a_missing_column_is_named_with_the_columns_there_are(table):
    with pytest.raises(ConfigError, match=r"lacks loss. It has num_params, num_tokens, final"):
        points_from_table(table.rename(columns={"loss": "final"}))


def test_a_column_can_be_renamed_by_a_map(table):
    points = points_from_table(table.rename(columns={"loss": "final"}), {"loss": "final"})
    assert len(points) == len(table)
    assert points.columns["loss"] == "final"


def test_a_map_to_a_column_that_is_not_there_suggests_one(table):
    with pytest.raises(ConfigError, match="Did you mean 'loss'"):
        points_from_table(table, {"loss": "los"})


def test_text_among_numbers_is_refused_with_its_row(table):
    table["loss"] = table["loss"].astype(object)
    table.loc[3, "loss"] = "oops"
    with pytest.raises(ConfigError, match="'oops' in row 4"):
        points_from_table(table)
    table["state"] = ["failed"] * 2 + ["completed"] * (len(table) - 2)
    with pytest.raises(ConfigError, match="1 of 34 rows do not, the first is 'oops' in row 4"):
        points_from_table(table)


def test_two_columns_of_one_name_are_refused(table, tmp_path):
    table.assign(**{" loss": 1.0}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ConfigError, match="2 columns named 'loss'"):
        read_points(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("column", "bad"), [("sparsity_fraction", 1.0), ("warmup_fraction", 5.0)], ids=str
)
def test_a_share_beyond_one_is_refused(table, column, bad):
    table[column] = 0.5
    assert len(points_from_table(table)) == len(table)
    table.loc[0, column] = bad
    with pytest.raises(ConfigError, match=f"{column} must lie in 0 to 1: 1 of 36 rows do not"):
        points_from_table(table)


@pytest.mark.parametrize("bad", [0.0, -5.0, np.nan, np.inf], ids=str)
@pytest.mark.parametrize("column", ["num_params", "num_tokens"])
def test_a_size_that_cannot_be_is_refused(table, column, bad):
    table.loc[2, column] = bad
    with pytest.raises(ConfigError, match=f"{column} must be positive and finite: 1 of 36"):
        points_from_table(table)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0, 1e300, 1e-200], ids=str)
def test_a_diverged_loss_is_left_out_and_counted(table, bad):
    table.loc[2, "loss"] = bad
    points = points_from_table(table)
    assert len(points) == len(table) - 1
    assert sum(points.dropped.values()) == 1


def test_a_count_that_no_product_can_hold_is_refused(table):
    with pytest.raises(ConfigError, match=r"(?s)num_params must be positive.*Above 1e\+60"):
        points_from_table(table.assign(num_params=table.num_params * 1e200))


@pytest.mark.parametrize("values", [True, pd.Timestamp("2024-01-01")], ids=["bool", "date"])
def test_a_column_of_another_kind_is_refused(table, values):
    with pytest.raises(ConfigError, match="'num_tokens' must hold numbers: it holds"):
        points_from_table(table.assign(num_tokens=values))


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_another_separator_is_named(table, tmp_path, mark):
    table.to_csv(tmp_path / "a.csv", index=False, sep=mark)
    with pytest.raises(ConfigError, match="write it with commas"):
        read_points(tmp_path / "a.csv")


def test_tabs_and_spaces_around_names_are_read(table, tmp_path):
    spaced = table.rename(columns={"loss": " loss", "num_tokens": "num_tokens "})
    spaced.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    assert len(read_points(tmp_path / "a.tsv")) == len(table)


def test_a_table_of_many_long_names_is_told_in_short():
    table = pd.DataFrame({f"{number}{'x' * 500}": [1.0] for number in range(40)})
    with pytest.raises(ConfigError, match="and 28 more") as caught:
        points_from_table(table)
    assert len(caught.value.message) < 1000


def test_exact_repeats_are_left_out_and_counted(table):
    points = points_from_table(pd.concat([table, table.head(4)]))
    assert points.dropped == {"repeats an earlier row exactly": 4}


def test_two_seeds_of_one_setting_are_both_kept(table):
    other = table.head(1).assign(loss=2.0)
    assert len(points_from_table(pd.concat([table, other]))) == len(table) + 1


def test_rows_that_did_not_complete_are_counted_by_state(table):
    table["state"] = ["completed"] * 30 + ["diverged"] * 4 + ["stopped"] * 2
    points = points_from_table(table)
    assert points.dropped == {"state is diverged": 4, "state is stopped": 2}
    assert fit(points, form="chinchilla", num_bootstraps=20).dropped == points.dropped


def test_compute_of_integer_columns_does_not_overflow():
    sizes = np.array([10**10, 2 * 10**10], dtype=np.int64)
    table = pd.DataFrame({"num_params": sizes, "num_tokens": sizes * 20, "loss": [2.0, 1.9]})
    assert points_from_table(table).compute_flops.tolist() == pytest.approx([1.2e22, 4.8e22])


def test_negative_flops_are_recognised_as_an_overflow(table):
    table["train_flops"] = 1e18
    table.loc[0, "train_flops"] = -3e18
    with pytest.raises(ConfigError, match="int64 overflow"):
        points_from_table(table)


def test_an_optional_column_without_any_value_is_absent(table):
    table["train_flops"] = np.nan
    table["warmup_fraction"] = [0.01] + [np.nan] * (len(table) - 1)
    assert points_from_table(table).train_flops is None
    assert points_from_table(table).warmup_fraction is not None
    table.loc[0, "loss"] = np.nan  # the only row that says it is left out
    assert points_from_table(table).warmup_fraction is None


def test_the_names_of_a_run_are_understood(table, tmp_path):
    run = table.rename(columns={"num_tokens": "train_tokens", "loss": "val_loss"})
    run.assign(state="completed").to_parquet(tmp_path / "results.parquet")
    assert len(read_points(tmp_path)) == len(table)


def test_csv_and_parquet_give_the_same_points(table, tmp_path):
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    a, b = read_points(tmp_path / "a.csv"), read_points(tmp_path / "a.parquet")
    np.testing.assert_allclose(a.loss, b.loss)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="no table of results"):
        read_points(tmp_path / "absent.csv")


def test_an_empty_table_is_refused(table):
    with pytest.raises(FitError, match="got 0"):
        fit(table.head(0))


@pytest.mark.slow
def test_a_table_of_a_million_rows_is_fitted_on_a_counted_sample():
    generator = np.random.default_rng(0)
    n, d = np.exp(generator.uniform(17, 22, 10**6)), np.exp(generator.uniform(20, 25, 10**6))
    loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * np.exp(0.01 * generator.standard_normal(n.size))
    law = fit(
        pd.DataFrame({"num_params": n, "num_tokens": d, "loss": loss}),
        form="chinchilla",
        num_bootstraps=20,
    )
    assert law.num_rows + sum(law.dropped.values()) == 10**6
    assert law.num_rows == 10_000
    assert law.coefficient("alpha").value == pytest.approx(0.35, abs=0.01)


def test_losses_of_several_tokenizers_are_refused_but_bits_per_byte_are_not(table):
    names = ["bytes"] + ["bpe-512"] * (len(table) - 1)
    mixed = table.assign(tokenizer=names, val_bits_per_byte=table["loss"] / 2)
    with pytest.raises(FitError, match=r"the rows have bpe-512, bytes\.\nFit bits per byte"):
        points_from_table(mixed)
    points = points_from_table(mixed, {"loss": "val_bits_per_byte"})
    assert len(points) == len(points_from_table(table))
    assert len(points_from_table(mixed[1:])) == len(points) - 1


@pytest.mark.parametrize("column", ["loss_unit", "validation_set"])
def test_losses_of_two_kinds_are_refused(table, column):
    table[column] = "one"
    assert len(points_from_table(table)) == len(table)
    table.loc[0, column] = "other"
    with pytest.raises(ConfigError, match=f"one {column}: got one, other"):
        points_from_table(table)
    table.loc[0, column] = None
    with pytest.raises(ConfigError, match="1 rows do not say"):
        points_from_table(table)


def test_rows_without_a_run_are_runs_of_their_own(table):
    table["run"] = None
    table.loc[:3, "run"] = "shared"
    run = points_from_table(table).run
    assert np.unique(run).size == len(table) - 3
    assert np.unique(run[:4]).size == 1


def test_a_rate_below_zero_is_refused_and_an_absent_one_is_not(table):
    table["learning_rate"] = 1e-3
    table.loc[0, "learning_rate"] = np.nan
    assert len(points_from_table(table)) == len(table)
    table.loc[0, "learning_rate"] = -1.0
    with pytest.raises(ConfigError, match="learning_rate must be positive"):
        points_from_table(table)


def test_a_form_whose_column_has_gaps_is_refused(table):
    table["post_training_bits"] = 4.0
    table.loc[0, "post_training_bits"] = np.nan
    with pytest.raises(FitError, match="1 of 36 lack it"):
        fit(table, form="post-training-precision")
