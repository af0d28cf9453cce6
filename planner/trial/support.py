"""Which configurations the engine runs: the plan asks before a trial starts, the engine when it does."""

from __future__ import annotations

from planner.errors import ConfigError, InfeasibleError
from planner.trial.point import TrialConfig

__all__ = ["check_supported", "check_workers"]

_TWO_CHUNKS = ("zbv-zero-bubble", "dualpipe-v")
_SPLIT_BACKWARD = ("interleaved-zero-bubble", *_TWO_CHUNKS)


def check_supported(config: TrialConfig) -> None:
    """Refuse a configuration that the engine cannot run.

    Raises:
        InfeasibleError: With the rule and the nearest configuration that runs.
    """
    for rule in (
        _check_family,
        _check_layout,
        _check_context,
        _check_local_steps,
        _check_compression,
        _check_pipeline,
        _check_tensor,
        _check_optimizer,
        _check_precision,
        _check_model,
    ):
        rule(config)


def _check_layout(config: TrialConfig) -> None:
    layout = config.layout
    if layout.cpu_offload and (layout.shard_parallel == 1 or layout.zero_stage == 1):
        raise InfeasibleError(
            "cpu_offload moves sharded states: it needs shard_parallel above 1 and zero_stage 2 or "
            f"3 (got shard_parallel={layout.shard_parallel}, zero_stage={layout.zero_stage}).",
            hint="Set layout.shard_parallel=2 or switch cpu_offload off.",
        )


def _check_context(config: TrialConfig) -> None:
    degree, length = config.layout.context_parallel, config.model.sequence_length
    if degree == 1:
        return
    if length % (2 * degree):
        raise InfeasibleError(
            "2 * context_parallel must divide sequence_length, for every worker holds two chunks: "
            f"sequence_length={length}, context_parallel={degree}.",
            hint=f"Set model.sequence_length to {-(-length // (2 * degree)) * 2 * degree}.",
        )
    if config.model.num_experts is not None:
        raise InfeasibleError(
            "experts are balanced over whole sequences: num_experts="
            f"{config.model.num_experts}, context_parallel={degree}.",
            hint="Use layout.context_parallel=1 with experts.",
        )


def _check_local_steps(config: TrialConfig) -> None:
    layout = config.layout
    if layout.local_steps > 1 and layout.num_workers != layout.data_parallel:
        raise InfeasibleError(
            f"local_steps={layout.local_steps} needs plain data parallelism: workers that hold parts "
            "of a model must agree at every step.",
            hint=f"Use layout.data_parallel={layout.num_workers} alone, or local_steps=1.",
        )


def _check_compression(config: TrialConfig) -> None:
    layout, precision = config.layout, config.precision
    if layout.gradient_compression == "none":
        return
    plain = layout.data_parallel > 1 and layout.num_workers == layout.data_parallel
    if not plain or config.model.num_experts is not None or layout.local_steps > 1:
        raise InfeasibleError(
            "powersgd compresses whole gradients that plain data parallelism averages at every "
            f"step: num_workers={layout.num_workers}, data_parallel={layout.data_parallel}, "
            f"num_experts={config.model.num_experts}, local_steps={layout.local_steps}.",
            hint="Use layout.data_parallel alone, or layout.gradient_compression=none with "
            "precision.reduce=fp16.",
        )
    if precision.reduce != "fp32" or precision.compute == "fp16":
        raise InfeasibleError(
            "powersgd keeps its error in fp32 and unscaled: "
            f"reduce={precision.reduce}, compute={precision.compute}.",
            hint="Use precision.reduce=fp32 and precision.compute=bf16.",
        )


def _check_pipeline(config: TrialConfig) -> None:
    layout, number = config.layout, config.num_micro_batches
    stages, chunks = layout.pipeline_parallel, layout.virtual_pipeline
    if stages == 1:
        if chunks > 1:
            raise InfeasibleError(
                f"virtual_pipeline={chunks} needs pipeline_parallel above 1.",
                hint="Use layout.virtual_pipeline=1.",
            )
        return
    if config.batch.ramp_start_sequences is not None:
        raise InfeasibleError(
            "a pipeline's schedule has a fixed number of micro-batches: ramp_start_sequences="
            f"{config.batch.ramp_start_sequences} with pipeline_parallel={stages}.",
            hint="Leave batch.ramp_start_sequences out, or use pipeline_parallel=1.",
        )
    name = layout.pipeline_schedule
    if name in _TWO_CHUNKS and chunks != 2:
        raise InfeasibleError(
            f"pipeline_schedule {name} needs virtual_pipeline=2: got {chunks}.",
            hint="Set layout.virtual_pipeline=2 or use the 1f1b schedule.",
        )
    if name in ("gpipe", "1f1b") and chunks != 1:
        raise InfeasibleError(
            f"pipeline_schedule {name} has one chunk per stage: virtual_pipeline={chunks}.",
            hint="Set layout.virtual_pipeline=1 or use the interleaved schedule.",
        )
    least = stages * (chunks if name == "dualpipe-v" else 1)
    if name != "gpipe" and number < least:
        raise InfeasibleError(
            f"pipeline_schedule {name} over {stages} stages needs at least {least} micro-batches "
            f"per step and worker: micro_batch_sequences={config.micro_batch_sequences} gives "
            f"{number}.",
            hint="Lower batch.micro_batch_sequences, or use pipeline_schedule=gpipe.",
        )
    if name.startswith("interleaved") and number % stages:
        raise InfeasibleError(
            f"pipeline_parallel must divide the micro-batches per step for {name}: "
            f"{number} micro-batches, {stages} stages.",
            hint="Change batch.micro_batch_sequences, or use pipeline_schedule=1f1b.",
        )
    if name in _SPLIT_BACKWARD and config.execution.activation_checkpointing != "none":
        raise InfeasibleError(
            f"pipeline_schedule {name} runs the backward pass in two halves, recomputation allows "
            f"one: activation_checkpointing={config.execution.activation_checkpointing}.",
            hint="Set execution.activation_checkpointing=none, or pipeline_schedule=1f1b or "
            "interleaved.",
        )
    if config.execution.chunked_loss:
        raise InfeasibleError(
            "chunked_loss needs a whole model per worker: pipeline_parallel="
            f"{layout.pipeline_parallel}.",
            hint="Set execution.chunked_loss=false; a pipeline's last stage holds one micro-batch's "
            "logits.",
        )


def _check_tensor(config: TrialConfig) -> None:
    layout, model = config.layout, config.model
    degree = layout.tensor_parallel
    if degree == 1:
        if layout.sequence_parallel:
            raise InfeasibleError(
                "sequence_parallel splits norms inside a tensor-parallel group: tensor_parallel=1.",
                hint="Set layout.sequence_parallel=false.",
            )
        return
    for name, value in (
        ("vocab_size", model.vocab_size),
        ("sequence_length", model.sequence_length if layout.sequence_parallel else degree),
    ):
        if value % degree:
            raise InfeasibleError(
                f"tensor_parallel must divide {name}: {name}={value}, tensor_parallel={degree}.",
                hint=f"Set model.{name} to {-(-value // degree) * degree}.",
            )
    if config.execution.chunked_loss:
        raise InfeasibleError(
            f"chunked_loss and tensor_parallel={degree} exclude each other: the logits are already "
            "split over the vocabulary.",
            hint="Set execution.chunked_loss=false.",
        )


def _check_optimizer(config: TrialConfig) -> None:
    layout = config.layout
    splits = layout.tensor_parallel > 1 or (layout.shard_parallel > 1 and layout.zero_stage > 1)
    if config.optimizer.name == "adafactor" and splits:
        raise InfeasibleError(
            "adafactor keeps means over whole rows and columns and does not run on split "
            f"parameters: tensor_parallel={layout.tensor_parallel}, "
            f"shard_parallel={layout.shard_parallel}, zero_stage={layout.zero_stage}.",
            hint="Use optimizer.name=adamw or lamb, or layout.zero_stage=1.",
        )


def _check_precision(config: TrialConfig) -> None:
    precision, layout = config.precision, config.layout
    if precision.emulate != "none" and layout.tensor_parallel > 1:
        raise InfeasibleError(
            f"emulation scales whole rows of matrices: tensor_parallel={layout.tensor_parallel} "
            "splits them.",
            hint="Use layout.tensor_parallel=1 with precision.emulate.",
        )
    if precision.emulate != "none" and precision.compute == "fp8":
        raise InfeasibleError(
            f"precision.compute=fp8 and precision.emulate={precision.emulate} exclude each other.",
            hint="Use precision.compute=bf16 with emulation.",
        )
    _check_fp8(config)
    if config.execution.chunked_loss and config.optimizer.label_smoothing:
        raise InfeasibleError(
            f"chunked_loss has no label smoothing: label_smoothing="
            f"{config.optimizer.label_smoothing}.",
            hint="Set execution.chunked_loss=false or optimizer.label_smoothing=0.",
        )


def _check_fp8(config: TrialConfig) -> None:
    """Refuse products of which a side is no multiple of 16: devices have none in fp8."""
    if config.precision.compute != "fp8":
        return
    model, layout = config.model, config.layout
    tokens = config.micro_batch_sequences * model.sequence_length // layout.context_parallel
    sides = {
        "d_model": model.d_model,
        "d_model / tensor_parallel": model.d_model // layout.tensor_parallel,
        "num_kv_heads * head_dim / tensor_parallel": (
            model.kv_heads * model.head_dim // layout.tensor_parallel
        ),
        "d_ff / tensor_parallel": model.ff_width // layout.tensor_parallel,
        "tokens of a micro-batch on a worker": tokens,
    }
    wrong = [f"{name} is {side}" for name, side in sides.items() if side % 16]
    if wrong:
        raise InfeasibleError(
            f"fp8 multiplies matrices whose sides are multiples of 16: {', '.join(wrong)}.",
            hint="Change them, or use precision.compute=bf16.",
        )


def _check_family(config: TrialConfig) -> None:
    layout = config.layout
    splits = {
        name: getattr(layout, name)
        for name in ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel")
    }
    wrong = [f"layout.{name}={degree}" for name, degree in splits.items() if degree > 1]
    if config.execution.chunked_loss:
        wrong.append("execution.chunked_loss=true")
    if config.model.family == "vit" and wrong:
        raise InfeasibleError(
            f"a vit is spread over data and shards alone and has few logits: {', '.join(wrong)}.",
            hint=f"Use layout.shard_parallel={layout.num_workers // layout.data_parallel} in their "
            "place, and chunked_loss=false.",
        )


def _check_model(config: TrialConfig) -> None:
    model, layout = config.model, config.layout
    if model.weight_norm and (layout.tensor_parallel > 1 or model.num_experts is not None):
        raise InfeasibleError(
            "weight_norm takes the length of whole rows of dense matrices: tensor_parallel="
            f"{layout.tensor_parallel}, num_experts={model.num_experts}.",
            hint="Use layout.shard_parallel in place of tensor_parallel, or model.weight_norm=false.",
        )
    if model.num_experts is None:
        if layout.expert_parallel > 1:
            raise InfeasibleError(
                f"expert_parallel={layout.expert_parallel} needs experts: model.num_experts is none.",
                hint="Use layout.expert_parallel=1, or set model.num_experts.",
            )
        return
    if model.bias:
        raise InfeasibleError(
            f"experts have no biases: num_experts={model.num_experts}, bias=true.",
            hint="Set model.bias=false.",
        )
    if layout.tensor_parallel > 1:
        raise InfeasibleError(
            f"experts are not split over a tensor group: num_experts={model.num_experts}, "
            f"tensor_parallel={layout.tensor_parallel}.",
            hint="Use layout.expert_parallel to spread them, with tensor_parallel=1.",
        )
    if config.precision.compute == "fp16":
        raise InfeasibleError(
            f"the balance loss of experts is not scaled for fp16: num_experts={model.num_experts}.",
            hint="Use precision.compute=bf16.",
        )
    if layout.expert_parallel > 1 and layout.shard_parallel > 1:
        raise InfeasibleError(
            "experts are spread over data-parallel workers that are not sharded: expert_parallel="
            f"{layout.expert_parallel}, shard_parallel={layout.shard_parallel}.",
            hint=f"Use layout.data_parallel={layout.data_shards} with shard_parallel=1.",
        )


def check_workers(config: TrialConfig, world_size: int) -> None:
    """Refuse to start with another number of workers than the layout needs.

    Raises:
        ConfigError: The numbers differ.
    """
    needed = config.layout.num_workers
    if world_size != needed:
        raise ConfigError(
            f"the layout needs {needed} worker{'s' if needed > 1 else ''}: world_size={world_size}.",
            hint=f"Start {needed} processes, or change layout.data_parallel.",
        )
