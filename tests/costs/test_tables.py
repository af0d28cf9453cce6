import pytest

from planner.costs.convnets import convnet_cost
from planner.costs.scores import calibrate_by_cluster, score_table, trial_of
from planner.costs.shapes import named_shape
from planner.costs.tables import TableRow, UnreadRow, device_name, read_table
from planner.errors import ConfigError

HEADER = (
    "row_id,source,layers,hidden,heads,kv_heads,ffn,mlp_mats,vocab,tied_emb,seq,gpu,gpu_mem_gb,gpus,"
    "gpus_per_node,gbs,mbs,tp,pp,vpp,dp,cp,ep,seq_par,zero,fsdp,precision,recompute,attn,framework,"
    "status,step_s,mem_gib,mem_kind"
)
LINE = (
    "a1,mine,32,4096,32,8,14336,3,128256,0,8192,{gpu},80,{gpus},8,64,1,1,1,1,,1,1,0,3,1,{precision},"
    "full,flash,torchtitan,ok,{step},60.5,max reserved"
)


def write(path, *lines):
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return path


def line(gpu="H100-SXM", gpus="8", precision="bf16", step="9.5"):
    return LINE.format(gpu=gpu, gpus=gpus, precision=precision, step=step)


def test_a_device_sold_with_more_memory_than_the_catalogues_has_the_tables(tmp_path):
    larger = line().replace(",H100-SXM,80,", ",H100-96GB-HBM2e(500W),96,")
    usual, more = read_table(write(tmp_path / "t.csv", line(), larger))
    assert usual.cluster.device.memory_bytes == pytest.approx(79.1 * 2**30, rel=1e-3)
    assert more.cluster.device.memory_bytes == pytest.approx(95 * 2**30, rel=1e-3)


def test_a_row_becomes_a_workload_in_base_units(tmp_path):
    (row,) = read_table(write(tmp_path / "t.csv", line()))
    assert isinstance(row, TableRow)
    w = row.workload
    assert (w.num_layers, w.d_model, w.kv_width, w.zero_stage, w.shard) == (32, 4096, 1024, 3, 8)
    assert w.num_micro_batches == 8
    assert w.recompute == 2
    assert row.step_seconds == 9.5
    assert row.memory_bytes == 60.5 * 2**30
    assert row.cluster.device.name == "h100-sxm"
    assert trial_of(row).step_seconds == 9.5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu": "Abacus"}, "no device like 'Abacus'"),
        ({"gpus": "many"}, "gpus must be a number"),
        ({"gpus": "-8"}, "not negative"),
        ({"gpus": "100000"}, "gbs must be at least dp x mbs"),
        ({"gpu": "A100-SXM", "precision": "fp8"}, "has no fp8"),
    ],
    ids=["unknown device", "text", "negative", "too few sequences", "lacking precision"],
)
def test_a_row_that_cannot_be_read_keeps_its_reason(tmp_path, changes, reason):
    (row,) = read_table(write(tmp_path / "t.csv", line(**changes)))
    assert isinstance(row, UnreadRow)
    assert row.row_id == "a1"
    assert reason in row.reason


def test_rows_are_scored_with_memory_time_and_interval(tmp_path):
    scores = score_table(read_table(write(tmp_path / "t.csv", line(), line(gpu="Abacus"))))
    (score,) = scores
    assert score.step_seconds_lower < score.step_seconds < score.step_seconds_upper
    assert score.fits
    assert 0.1 < score.mfu < 0.8


def test_a_missing_file_is_an_error_without_traceback(tmp_path):
    with pytest.raises(ConfigError, match="readable CSV"):
        read_table(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("gpu", "memory", "name"),
    [
        ("A100-SXM", 80.0, "a100-sxm"),
        ("A100", 40.0, "a100-sxm-40gb"),
        ("NVIDIA H100", 80.0, "h100-sxm"),
        ("H100-96GB-HBM2e(500W)", 96.0, "h100-sxm"),
        ("H100-PCIe", 80.0, "h100-pcie"),
        ("V100-SXM2-32GB", 32.0, "v100-sxm"),
        ("MI300X", 192.0, "mi300x"),
        ("GB200", 186.0, "gb200"),
        ("TPU-v5e", 16.0, "tpu-v5e"),
        ("L40S", 48.0, "l40s"),
        ("RTX-4090", 24.0, "rtx-4090"),
        ("T4", 16.0, "t4"),
    ],
)
def test_devices_are_recognised_as_tables_write_them(gpu, memory, name):
    assert device_name(gpu, memory) == name


def test_a_convolutional_network_has_a_step_time_and_needs_whole_images(cluster_of):
    shape, cluster = named_shape("resnet-50"), cluster_of("8xa100-sxm")
    one = convnet_cost(shape, cluster, images_per_step=1024, precision="bf16")
    two = convnet_cost(shape, cluster, images_per_step=2048, precision="bf16")
    assert one.forward_flops_per_image == pytest.approx(8.18e9, rel=0.01)
    assert one.step_seconds < two.step_seconds < 2 * one.step_seconds
    assert 10_000 < 2048 / two.step_seconds < 40_000
    with pytest.raises(ConfigError, match="multiple of the devices"):
        convnet_cost(shape, cluster, images_per_step=1001, precision="bf16")


def test_rows_calibrate_their_own_cluster_and_no_other(tmp_path):
    measured = read_table(write(tmp_path / "m.csv", line(step="30"), line(gpus="16", step="16")))
    others = read_table(write(tmp_path / "t.csv", line(), line(gpu="A100-SXM")))
    before, after = score_table(others), score_table(others, calibrate_by_cluster(measured))
    assert after[0].step_seconds > 1.3 * before[0].step_seconds
    assert after[0].confidence == "high"
    assert after[1] == before[1]
