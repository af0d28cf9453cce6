"""`planner estimate` and `planner doctor` as people type them."""

import json

import pytest

from planner.cli import main


def run(capsys, *arguments):
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_estimate_prints_layouts_breakdown_price_and_rejections(capsys):
    code, out, err = run(
        capsys, "estimate", "--model", "gpt-7b", "--cluster", "64xh100-sxm", "--tokens", "140e9"
    )
    assert code == 0
    for word in ("6.65B parameters", "ZeRO-", "MFU", "memory: ", "step: ", "binds: ", "kgCO2", "$"):
        assert word in out
    assert "layouts are feasible" in out
    assert "confidence: medium" in err
    assert "2026-05" in err


def test_estimate_writes_one_json_document(capsys):
    code, out, _ = run(
        capsys, "estimate", "--model", "llama-3-8b", "--cluster", "8xh100-sxm", "--tokens", "1B",
        "--usd-per-device-hour", "2", "--json",
    )  # fmt: skip
    document = json.loads(out)
    assert code == 0
    best = document["layouts"][0]
    assert best["usd"] == pytest.approx(2 * best["device_hours"])
    assert sum(best["layout"]["step_breakdown_seconds"].values()) == pytest.approx(
        best["layout"]["step_seconds"]
    )
    assert document["num_params"] == 8030261248
    assert document["rejected"]


def test_estimate_describes_a_model_by_layers_and_width(capsys):
    code, out, _ = run(
        capsys, "estimate", "--layers", "12", "--width", "768", "--cluster", "8xa100-sxm"
    )
    assert code == 0
    assert "parameters" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--model", "gpt-8b"), 2, "Did you mean"),
        (("--model", "gpt-7b", "--cluster", "8xh100"), 2, "no device named 'h100'"),
        (("--model", "gpt-7b", "--cluster", "many"), 2, "no device named 'many'"),
        (("--model", "gpt-7b", "--cluster", "8xt4", "--precision", "bf16"), 2, "t4 has no bf16"),
        (("--model", "gpt-7b", "--cluster", "8xh100-sxm", "--tokens", "0"), 2, "must be positive"),
        (
            ("--model", "gpt-7b", "--cluster", "8xh100-sxm", "--optimizer", "lion"),
            2,
            "no optimizer",
        ),
        (("--model", "llama-3-405b", "--cluster", "8xh100-sxm"), 5, "must fit the cluster"),
        (("--layers", "0", "--width", "64"), 2, "at least 1"),
        (("--model", "gpt2", "--cluster", "0xh100-sxm"), 2, "a count of at least 1"),
        (("--model", "gpt2", "--cluster", "1e3xh100-sxm"), 2, "a count of at least 1"),
        ((), 2, "name what to estimate"),
        (("--table", "nowhere.csv"), 2, "readable CSV"),
    ],
)
def test_mistakes_get_one_screen_and_an_exit_code(capsys, arguments, code, words):
    found, _, err = run(capsys, "estimate", *arguments)
    assert found == code
    assert words in err
    assert "Traceback" not in err


def test_models_and_devices_are_listed(capsys):
    assert "llama-3-70b" in run(capsys, "estimate", "--models")[1]
    assert "h100-sxm" in run(capsys, "doctor", "--devices")[1]
    devices = json.loads(run(capsys, "doctor", "--devices", "--json")[1])
    assert devices["a100-sxm"]["peaks"]["bf16"] == 312e12


def test_doctor_shows_this_machine(capsys):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "usable cores" in out
    assert json.loads(run(capsys, "doctor", "--json")[1])["num_cores"] >= 1


def test_a_convolutional_network_is_estimated(capsys):
    code, out, err = run(capsys, "estimate", "--model", "resnet-50", "--cluster", "8xa100-sxm")
    assert code == 0
    assert "25.6M" in out
    assert "confidence: low" in err


def test_a_table_is_scored_with_and_without_calibration(capsys, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(
        "source,layers,hidden,heads,seq,gpu,gpus,gbs,mbs,tp,fsdp,step_s\n"
        "mine,32,4096,32,8192,H100-SXM,8,64,1,1,1,30\n"
        "mine,32,4096,32,4096,H100-SXM,8,64,2,1,1,14\n"
    )
    plain = json.loads(run(capsys, "estimate", "--table", str(path), "--json")[1])["rows"]
    fitted = json.loads(
        run(capsys, "estimate", "--table", str(path), "--calibrate", str(path), "--json")[1]
    )["rows"]
    assert len(plain) == len(fitted) == 2
    assert abs(fitted[0]["step_seconds"] - 30) < abs(plain[0]["step_seconds"] - 30)


def test_calibration_rows_of_another_device_are_refused(capsys, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(
        "source,layers,hidden,heads,seq,gpu,gpus,gbs,mbs,step_s\nmine,32,4096,32,8192,A100,8,64,1,30\n"
    )
    code, _, err = run(
        capsys, "estimate", "--model", "gpt-7b", "--cluster", "8xh100-sxm", "--calibrate", str(path)
    )
    assert code == 2
    assert "needs measured rows of one cluster" in err


ROWS = "source,layers,hidden,heads,seq,gpu,gpus,gbs,mbs,tp,step_s"


def test_rows_that_cannot_be_are_named_and_the_others_scored(capsys, tmp_path):
    path = tmp_path / "rows.csv"
    good, no_heads, too_many = (
        f"mine,32,4096,{heads},8192,A100,8,64,1,{tp},30"
        for heads, tp in ((32, 8), (0, 8), (32, 64))
    )
    path.write_text("\n".join((ROWS, good, no_heads, too_many)) + "\n")
    code, out, err = run(capsys, "estimate", "--table", str(path), "--calibrate", str(path))
    assert code == 0
    assert len(out.splitlines()) == 2
    assert err.count("line 3: left out: heads must be at least 1 (got 0)") == 2
    assert err.count("line 4: left out: the layout must fit the devices") == 2
    path.write_text(ROWS + "\n")
    assert run(capsys, "estimate", "--table", str(path))[0] == 2


def test_rows_without_a_measurement_calibrate_nothing(capsys, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"{ROWS}\nmine,32,4096,32,8192,H100-SXM,8,64,1,1,\n")
    code, _, err = run(
        capsys, "estimate", "--model", "gpt-7b", "--cluster", "8xh100-sxm", "--calibrate", str(path)
    )
    assert code == 2
    assert "0 sources with step_s or mem_gib on h100-sxm" in err


def test_a_table_is_of_low_confidence_beyond_what_the_calibration_spans(capsys, tmp_path):
    trials, rows = tmp_path / "trials.csv", tmp_path / "rows.csv"
    line = "mine,12,768,12,1024,A100,{gpus},4096,8,1,{step}"
    measured = (line.format(gpus=8, step=4.5), line.format(gpus=16, step=2.3))
    trials.write_text("\n".join((ROWS, *measured)) + "\n")
    further = (line.format(gpus=8, step=""), line.format(gpus=256, step=""))
    rows.write_text("\n".join((ROWS, *further)) + "\n")
    _, out, _ = run(capsys, "estimate", "--table", str(rows), "--calibrate", str(trials), "--json")
    near, far = json.loads(out)["rows"]
    assert (near["confidence"], far["confidence"]) == ("high", "low")
    assert "the calibration's trials have" in far["confidence_reason"]


def test_precisions_are_listed_with_commas_and_spaces(capsys):
    code, out, _ = run(
        capsys, "estimate", "--model", "gpt2", "--cluster", "1xa100-sxm", "--precision",
        "bf16, fp16,", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["layouts"][0]["layout"]["precision"] in ("bf16", "fp16")
