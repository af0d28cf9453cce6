"""`train` in one process: what it learns, reports and refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from planner.costs.flops import train_flops_per_token
from planner.costs.params import count_params
from planner.engine import corpus_entropy, train, train_local
from planner.engine.failures import classify
from planner.engine.measurement import least_state_bytes
from planner.errors import ConfigError, InfeasibleError
from planner.trial import TrialResult, TrialState


def test_importing_the_engine_loads_neither_torch_nor_ray():
    code = "import planner.engine, sys; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_trial_reports_every_field_that_it_can_know(small):
    reports = []
    result = train(small(), trial="t007", on_metrics=reports.append)
    fields = {field.name for field in dataclasses.fields(TrialResult)}
    assert len(reports) == 5
    assert set(reports[-1]) <= fields
    assert result.trial == "t007"
    assert result.state is TrialState.COMPLETED
    params = count_params(small().model)
    assert (result.num_params, result.num_params_non_embedding) == (
        params.total, params.non_embedding,
    )  # fmt: skip
    assert result.train_tokens == 16 * 8 * 10
    assert result.train_flops == pytest.approx(
        result.train_tokens * train_flops_per_token(small().model)
    )
    assert result.num_steps == 10
    for name in ("val_loss", "train_loss", "tokens_per_second", "mfu", "train_seconds"):
        assert getattr(result, name) > 0, name
    assert 0 < result.train_seconds <= result.elapsed_seconds
    assert result.peak_memory_bytes > 1e6


def test_the_parameters_built_are_those_counted(small):
    from planner.engine.models import build_model

    experts = {"num_experts": 4, "mlp": "gated"}
    for change in (
        {},
        experts,
        {"mlp": "gated", "num_kv_heads": 2},
        {"bias": True, "norm": "layernorm"},
        {"weight_norm": True, "mlp": "gated", "num_kv_heads": 2},
    ):
        model = small(model=change).model
        built = build_model(model, __import__("torch").float32)
        assert sum(p.numel() for p in built.parameters()) == count_params(model).total


@pytest.mark.slow
def test_the_engine_overfits_a_tiny_text(small, tmp_path):
    text = tmp_path / "tiny.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    config = small(
        train={"tokens": 16 * 16 * 150, "num_validations": 1},
        batch={"sequences_per_step": 16, "micro_batch_sequences": 16},
        optimizer={"learning_rate": 1e-2},
        data={"corpus": str(text)},
    )
    result = train(config)
    assert result.val_loss < 0.25 < 2.5 < corpus_entropy(config)


def test_training_beats_the_unigram_entropy_of_its_corpus(small):
    config = small(
        train={"tokens": 16 * 32 * 120, "num_validations": 1, "validation_tokens": 8192},
        batch={"sequences_per_step": 32, "micro_batch_sequences": 32},
        optimizer={"learning_rate": 1e-2},
        data={"corpus": "python-stdlib"},
    )
    assert train(config).val_loss < 0.95 * corpus_entropy(config)


def test_two_runs_of_one_seed_give_the_same_losses(small):
    first, second = train(small()), train(small())
    assert (first.val_loss, first.train_loss) == (second.val_loss, second.train_loss)
    assert train(small(train={"seed": 1})).val_loss != first.val_loss


def test_accumulating_micro_batches_changes_nothing(small):
    whole = train(small(batch={"micro_batch_sequences": 8}))
    parts = train(small(batch={"micro_batch_sequences": 2}))
    assert parts.val_loss == pytest.approx(whole.val_loss, abs=1e-5)


def test_reports_come_at_the_first_step_that_reaches_the_compute_asked_for(small):
    config = small(train={"num_validations": 1})
    per_step = train_flops_per_token(config.model) * config.tokens_per_step
    reports = []
    train(config, on_metrics=reports.append, report_at_flops=[3 * per_step, 6.5 * per_step, 1e30])
    assert [report["num_steps"] for report in reports] == [3, 7, 10]
    assert reports[0]["train_flops"] == 3 * per_step


def test_the_caller_stops_a_trial_by_returning_false(small):
    result = train(small(), on_metrics=lambda _: False)
    assert result.state is TrialState.STOPPED
    assert result.num_steps == 2


def test_a_loss_that_explodes_ends_in_diverged(small):
    result = train(
        small(
            optimizer={"learning_rate": 1e3, "gradient_clip_norm": None},
            schedule={"warmup_fraction": 0.0},
        )
    )
    assert result.state is TrialState.DIVERGED
    assert "loss is" in result.reason
    assert result.num_steps <= 10


def test_memory_that_runs_out_is_told_from_other_errors():
    cpu = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
    )
    lost = RuntimeError("gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]")
    blas = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")
    assert classify(cpu)[0] is TrialState.OUT_OF_MEMORY
    assert classify(blas)[0] is TrialState.OUT_OF_MEMORY
    assert classify(lost)[0] is TrialState.FAILED
    assert classify(RuntimeError("shape mismatch")) is None


@pytest.mark.parametrize(
    ("sections", "bytes_per_parameter"),
    [
        ({}, 16),
        ({"layout": {"data_parallel": 4}}, 16),
        ({"layout": {"shard_parallel": 4, "zero_stage": 1}}, 8 + 8 / 4),
        ({"layout": {"shard_parallel": 4, "zero_stage": 2}}, 16 / 4),
        ({"layout": {"tensor_parallel": 2}}, 16 / 2),
        ({"optimizer": {"name": "sgd"}}, 8),
    ],
)
def test_no_trial_is_refused_for_memory_that_its_states_do_not_need(
    small, sections, bytes_per_parameter
):
    config = small(**sections)
    needed = bytes_per_parameter * count_params(config.model).total
    assert least_state_bytes(config) == pytest.approx(needed)


def test_running_out_of_memory_is_a_result_with_its_peak(small):
    huge = small(
        model={"vocab_size": 50_000_000, "d_model": 65_536, "num_heads": 1},
        train={"tokens": 128, "num_validations": 1},
    )
    result = train(huge)
    assert result.state is TrialState.OUT_OF_MEMORY
    assert "free" in result.reason
    assert result.peak_memory_bytes > 1e6


WIDE_VOCABULARY = {
    # The logits of one pass over all 64 sequences take 1 GiB, several times over.
    "model": {"num_layers": 1, "sequence_length": 64, "vocab_size": 65_536},
    "batch": {"sequences_per_step": 64, "micro_batch_sequences": 64},
    "train": {"tokens": 64 * 64, "num_validations": 1, "validation_tokens": 64},
}


@pytest.fixture
def run_in_3_gib(settings, tmp_path):
    """A function that runs a trial in a process that may hold 3 GiB, and returns its result."""

    def run(**execution):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(settings(**WIDE_VOCABULARY, execution=execution)))
        code = (
            "import resource, sys, torch\n"
            "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
            "from planner.engine.__main__ import main\n"
            f"sys.exit(main([{str(path)!r}]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, json.loads(done.stdout)

    return run


def test_an_allocation_that_fails_in_a_step_is_a_result_too(run_in_3_gib):
    code, result = run_in_3_gib()
    assert code == 1
    assert result["state"] == "out_of_memory"
    assert result["peak_memory_bytes"] > 1e8


def test_a_micro_batch_that_fits_is_found(run_in_3_gib):
    code, result = run_in_3_gib(fit_micro_batch=True)
    assert code == 0
    assert result["state"] == "completed"
    assert 1 <= result["metrics"]["micro_batch_sequences"] < 64
    assert result["train_tokens"] == 64 * 64


@pytest.mark.slow
def test_two_workers_give_the_losses_of_one(small):
    alone, together = [], []
    train(small(), on_metrics=alone.append)
    result = train_local(small(layout={"data_parallel": 2}), on_metrics=together.append)
    assert result.num_workers == 2
    assert result.state is TrialState.COMPLETED
    assert [r["val_loss"] for r in together] == pytest.approx(
        [r["val_loss"] for r in alone], abs=1e-5
    )


def test_the_loss_at_the_start_is_that_of_a_uniform_guess(small):
    reports = []
    # With a tied head a token's own logit is raised, which runs of blanks reward.
    config = small(
        model={"tied_head": False},
        train={"tokens": 128, "num_validations": 1},
        optimizer={"learning_rate": 1e-9},
    )
    train(config, on_metrics=reports.append)
    assert reports[0]["train_loss"] == pytest.approx(math.log(256), abs=0.1)


def test_a_number_of_workers_other_than_the_layouts_is_refused(small):
    with pytest.raises(ConfigError, match="the layout needs 2 workers: world_size=1"):
        train(small(layout={"data_parallel": 2}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"layout": {"context_parallel": 2}, "model": {"sequence_length": 18}},
            "must divide sequence_length",
        ),
        (
            {"layout": {"context_parallel": 2}, "model": {"num_experts": 2}},
            "experts are balanced over whole sequences",
        ),
        ({"layout": {"cpu_offload": True}}, "shard_parallel above 1"),
        (
            {"layout": {"shard_parallel": 2, "gradient_compression": "powersgd"}},
            "plain data parallelism averages",
        ),
        (
            {
                "layout": {"data_parallel": 2, "gradient_compression": "powersgd"},
                "precision": {"reduce": "fp16"},
            },
            "powersgd keeps its error in fp32",
        ),
        (
            {"layout": {"tensor_parallel": 2}, "model": {"weight_norm": True}},
            "weight_norm takes the length of whole rows",
        ),
        ({"layout": {"sequence_parallel": True}}, "tensor_parallel=1"),
        ({"layout": {"virtual_pipeline": 2}}, "pipeline_parallel above 1"),
        (
            {"layout": {"pipeline_parallel": 2}, "batch": {"micro_batch_sequences": 8}},
            "at least 2 micro-batches",
        ),
        (
            {
                "layout": {
                    "pipeline_parallel": 2, "pipeline_schedule": "zbv-zero-bubble",
                }
            },
            "needs virtual_pipeline=2",
        ),
        (
            {"layout": {"tensor_parallel": 2}, "model": {"vocab_size": 257}},
            "must divide vocab_size",
        ),
        ({"model": {"num_experts": 2, "bias": True}}, "experts have no biases"),
        (
            {"model": {"num_experts": 2}, "precision": {"compute": "fp16"}},
            "not scaled for fp16",
        ),
        (
            {"layout": {"tensor_parallel": 2}, "execution": {"chunked_loss": True}},
            "chunked_loss and tensor_parallel",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_layout_that_cannot_work_is_refused_with_what_can(small, sections, message):
    with pytest.raises(InfeasibleError, match=message) as refusal:
        train(small(**sections))
    assert refusal.value.hint
