"""Losses during training: which are comparable, and what the envelope through them says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from planner.cli.fit import command as fit_command
from planner.curves import ScalingLaw, best_sizes, fit, points_from_table, read_points
from planner.errors import FitError
from planner.trial import BatchConfig, ModelConfig, ScheduleConfig, TrainConfig, TrialConfig

TRUTH = (1.8, 480.0, 2100.0, 0.35, 0.37)
EXPONENT = 0.37 / 0.72
SIZES = np.geomspace(2e7, 2e9, 9)
LENGTHS = (1000 * 2**20, 10_000 * 2**20, 100_000 * 2**20)
STEP = 2**20


def _loss(n: float, d: float) -> float:
    e, a, b, alpha, beta = TRUTH
    return e + a / n**alpha + b / d**beta


def _config(tokens: float, schedule: str) -> TrialConfig:
    return TrialConfig(
        model=ModelConfig(num_layers=1, d_model=32, num_heads=1, sequence_length=1024),
        train=TrainConfig(tokens=int(tokens)),
        batch=BatchConfig(sequences_per_step=STEP // 1024),
        schedule=ScheduleConfig(name=schedule),
    )


def _run(schedule: str = "wsd", state: str = "completed") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return trials and reports of a sweep whose losses follow the law, decayed ones 5 % lower."""
    trials, reports = [], []
    for number, (n, d) in enumerate((n, d) for n in SIZES for d in LENGTHS):
        name = f"t{number:03d}"
        for part in np.arange(1, 21) / 20:
            gain = 0.95 if part > 0.8 else 1.0
            reports.append(
                {"trial": name, "train_tokens": part * d, "train_flops": 6 * n * d * part,
                 "val_loss": gain * _loss(n, d * part)}
            )  # fmt: skip
        trials.append(
            {"trial": name, "state": state, "num_params": n, "train_tokens": d,
             "train_flops": 6 * n * d, "val_loss": 0.95 * _loss(n, d),
             "config": _config(d, schedule).model_dump_json()}
        )  # fmt: skip
    return pd.DataFrame(trials), pd.DataFrame(reports)


def _checkpoints(**columns: object) -> pd.DataFrame:
    """Return a table of several rows a run, as a user would log them."""
    rows = [
        {"run": f"{n:.3g}-{d:.3g}", "num_params": n, "num_tokens": d * part, "part": part,
         "loss": _loss(n, d * part) * (0.95 if part == 1 else 1.0)}
        for n in SIZES for d in LENGTHS for part in np.arange(1, 11) / 10
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**columns)


def test_wsd_reports_before_the_decay_give_the_exponent(tmp_path: Path):
    trials, reports = _run()
    trials.to_parquet(tmp_path / "results.parquet")
    reports.to_parquet(tmp_path / "curves.parquet")
    points = read_points(tmp_path)
    assert len(points) == len(trials)
    assert points.stable is not None
    assert points.stable.loss.size == 27 * 16  # 0.05 to 0.8 of each
    assert points.stable.dropped == {"not at a constant learning rate": 27 * 4}
    law = fit(points, num_bootstraps=50)
    assert law.frontiers["envelope"].slope == pytest.approx(EXPONENT, abs=0.01)
    assert "432 reports of 27 runs" in law.checklist["collection: losses during training"]


@pytest.mark.parametrize(
    ("schedule", "state", "why"),
    [
        ("cosine", "completed", "540 not at a constant learning rate"),
        ("wsd", "diverged", "540 of trials whose state is diverged"),
    ],
)
def test_reports_that_do_not_compare_are_counted_with_the_reason(schedule, state, why):
    trials, reports = _run(schedule, state)
    points = points_from_table(trials, reports=reports)
    assert points.stable is not None
    assert not points.stable.loss.size
    assert why in str(points.stable)


def test_trials_that_were_stopped_early_count_and_copies_do_not():
    trials, reports = _run("constant", "stopped")
    stable = points_from_table(trials, reports=reports, copied={"t000"}).stable
    assert stable is not None
    assert stable.loss.size == 26 * 20
    assert stable.dropped == {"continue another trial": 20}


def test_reports_of_another_loss_than_the_fitted_one_are_not_used():
    trials, reports = _run()
    trials["val_bits_per_byte"] = trials["val_loss"] / 2
    stable = points_from_table(trials, {"loss": "val_bits_per_byte"}, reports=reports).stable
    assert "while val_bits_per_byte is fitted" in str(stable)


def test_a_rate_that_moves_along_a_run_parts_its_rows():
    table = _checkpoints()
    table["learning_rate"] = np.where(table.part <= 0.7, 1e-3, 1e-3 * (1.1 - table.part))
    table.loc[table.part == 0.1, "learning_rate"] = 5e-4  # warm-up
    points = points_from_table(table)
    assert len(points) == 27
    assert points.dropped == {"before the end of its schedule": 27 * 9}
    assert points.stable is not None
    assert points.stable.loss.size == 27 * 6
    law = fit(points, num_bootstraps=50)
    assert law.frontiers["envelope"].slope == pytest.approx(EXPONENT, abs=0.02)
    assert "checkpoints-of-one-run" not in [w.code for w in law.warnings]


def test_a_named_constant_schedule_keeps_every_row():
    points = points_from_table(_checkpoints(schedule="constant"))
    assert len(points) == 270
    assert points.stable is not None
    assert points.stable.loss.size == 270
    law = fit(points, num_bootstraps=50)
    assert "checkpoints-of-one-run" not in [w.code for w in law.warnings]
    assert law.checklist["set-up: schedule"] == "270 constant"


def test_a_named_decaying_schedule_keeps_final_rows_alone():
    points = points_from_table(_checkpoints(schedule="cosine", learning_rate=1e-3))
    assert len(points) == 27
    assert "243 not at a constant learning rate" in str(points.stable)


def test_a_table_left_with_too_few_lengths_says_what_was_left_out():
    table = _checkpoints(schedule="cosine")
    table = table[table.run.str.endswith(f"{LENGTHS[0]:.3g}")]
    with pytest.raises(FitError, match=r"num_tokens: got 1 .*81 before the end of its schedule"):
        fit(points_from_table(table))


@pytest.mark.parametrize(
    "columns", [{}, {"learning_rate": 1e-3}, {"learning_rate": np.nan}, {"schedule": None}]
)
def test_rows_whose_schedule_nothing_tells_are_kept_and_not_used_for_the_envelope(columns):
    law = fit(points_from_table(_checkpoints(**columns)), num_bootstraps=50)
    assert law.num_rows == 270
    assert "270 of runs whose schedule nothing tells" in law.refusals["envelope"]
    assert "checkpoints-of-one-run" in [w.code for w in law.warnings]


def test_final_losses_of_constant_and_decaying_trainings_are_not_mixed_unsaid():
    table = _checkpoints()
    table = table[table.part == 1].drop(columns="run").reset_index()
    table["schedule"] = np.where((table.index + table.index // 3) % 3 == 0, "constant", "cosine")
    table.loc[table.schedule == "constant", "loss"] /= 0.95
    law = fit(table, num_bootstraps=50)
    (found,) = [w for w in law.warnings if w.code == "schedules-mixed"]
    assert found.value == pytest.approx(0.05, abs=0.02)
    assert "9 trainings end at a constant rate and 18 do not" in found.message


def test_a_group_of_several_sizes_is_no_run():
    points = points_from_table(_checkpoints(run="all", learning_rate=np.linspace(1, 2, 270)))
    assert len(points) == 270
    assert points.stable is None


def test_the_methods_stand_side_by_side_in_text_and_json(tmp_path: Path):
    table = _checkpoints()
    table["learning_rate"] = np.where(table.part < 1, 1e-3, 1e-4)
    table.to_csv(tmp_path / "a.csv", index=False)
    options = [str(tmp_path / "a.csv"), "--draws", "50", "--out", str(tmp_path / "laws.json")]
    done = CliRunner().invoke(fit_command, [*options, "--json", "--plots", str(tmp_path)])
    rows = {row["method"]: row for row in json.loads(done.stdout)["best_sizes"]}
    assert list(rows) == ["surface", "isoflop", "envelope", "recommended"]
    assert "at least 3 budgets" in rows["isoflop"]["refusal"]
    assert rows["envelope"]["exponent_lower"] < EXPONENT < rows["envelope"]["exponent_upper"]
    sizes = [rows[m]["num_params"] for m in ("surface", "envelope")]
    assert rows["recommended"]["num_params"] == pytest.approx(np.sqrt(np.prod(sizes)))
    text = CliRunner().invoke(fit_command, [*options, "--no-plots"]).stdout
    assert "best size by\texponent" in text
    assert "isoflop: an IsoFLOP frontier needs" in text
    law = ScalingLaw.load(tmp_path / "laws.json")
    assert best_sizes(law)[2] == best_sizes(ScalingLaw.from_json(law.to_json()))[2]


def test_disagreement_of_the_envelope_widens_the_recommended_size():
    trials, reports = _run()
    narrow = best_sizes(fit(points_from_table(trials, reports=reports), num_bootstraps=100), 1e22)
    reports["train_flops"] *= 20.0  # as if every size were best at twenty times the compute
    law = fit(points_from_table(trials, reports=reports), num_bootstraps=100)
    wide = best_sizes(law, 1e22)
    assert wide[2].num_params < 0.5 * narrow[2].num_params
    width = [np.log(row.num_params_upper / row.num_params_lower) for row in (narrow[-1], wide[-1])]
    assert width[1] > 1.5 * width[0]
    assert "methods-disagree" in [w.code for w in law.warnings]
