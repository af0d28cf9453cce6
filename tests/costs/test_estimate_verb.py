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
    assert "needs the rows of one cluster" in err
