"""Builds this worker's part of a model: one order of steps for every layout.

Per stage: build without memory, cut (pipeline), split (tensor), recompute (activation
checkpointing), compile, then block by block give memory and initial values and shard (FSDP2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from planner.engine.models import build_model
from planner.engine.models.initialise import materialise
from planner.engine.models.layers import Block
from planner.engine.models.transformer import Transformer
from planner.engine.parallel.groups import Groups
from planner.engine.precision import REDUCE_DTYPES, set_products
from planner.trial import TrialConfig

__all__ = ["LocalModel", "build_local_model"]


@dataclass(slots=True)
class LocalModel:
    """What one worker holds of a model."""

    stages: dict[int, Transformer]
    """Pipeline stage -> module; one entry, 0, without a pipeline."""
    split: set[str] = field(default_factory=set)
    """Names of the parameters of which each worker of a tensor group holds a part."""
    expert: set[str] = field(default_factory=set)
    """Names of the parameters of which each worker of an expert group holds a part."""
    partial: set[str] = field(default_factory=set)
    """Names of the parameters whose gradients are to be summed over the tensor group."""

    @property
    def whole(self) -> Any:
        """The model of a worker that has no pipeline; FSDP adds methods to its class."""
        return self.stages[0]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters by their name in the whole model."""
        return [item for stage in self.stages.values() for item in stage.named_parameters()]


def build_local_model(
    config: TrialConfig, groups: Groups, device: torch.device, compute: torch.dtype
) -> LocalModel:
    """Return this worker's part of the model, initialised, in its layout."""
    layout = config.layout
    with torch.device("meta"):
        model = build_model(config.model, compute)
    model.logit_scale = 1.0 / _width_ratio(config)
    stages = {0: model}
    if layout.pipeline_parallel > 1:
        from planner.engine.parallel.pipeline import cut, own_stages

        number = layout.pipeline_parallel * layout.virtual_pipeline
        mine = own_stages(layout, groups.rank("pipeline"))
        stages = {stage: cut(model, stage, number) for stage in mine}
    _set_execution(stages.values(), config)
    local = LocalModel(stages)
    if layout.tensor_parallel > 1:
        _split_tensors(local, groups)
    if layout.context_parallel > 1:
        from planner.engine.parallel.context import split_context

        for stage in stages.values():
            split_context(stage, groups)
    if layout.expert_parallel > 1:
        from planner.engine.parallel.expert import spread_experts

        for stage in stages.values():
            spread_experts(stage, groups)
        local.expert = {name for name, _ in local.named_parameters() if ".experts." in name}
    for stage in stages.values():
        _finish(stage, config, groups, device, compute)
    return local


def _set_execution(stages: Iterable[Transformer], config: TrialConfig) -> None:
    """Tell the blocks what to compute again, and compile them where asked."""
    recompute = None
    if config.execution.activation_checkpointing != "none":
        from planner.engine.recompute import make_recompute

        recompute = make_recompute(config.execution.activation_checkpointing)
    for stage in stages:
        set_products(stage.layers.children(), config.precision)
        for block in stage.layers.children():
            if isinstance(block, Block):
                block.recompute = recompute
            if config.execution.compile:
                block.compile()


def _width_ratio(config: TrialConfig) -> float:
    """Return d_model over the base width under width scaling, else 1."""
    optimizer = config.optimizer
    return config.model.d_model / optimizer.base_width if optimizer.width_scaling == "mup" else 1.0


def _split_tensors(local: LocalModel, groups: Groups) -> None:
    from planner.engine.parallel.tensor import TensorParallel, has_partial_gradient

    for stage in local.stages.values():
        TensorParallel(groups).apply(stage)
    for name, parameter in local.named_parameters():
        if hasattr(parameter, "placements"):
            local.split.add(name)
        elif groups.layout.sequence_parallel and has_partial_gradient(name):
            local.partial.add(name)


def _finish(
    stage: Transformer,
    config: TrialConfig,
    groups: Groups,
    device: torch.device,
    compute: torch.dtype,
) -> None:
    """Give a stage its memory and values, block by block, and shard it where the layout says."""
    shards = groups.shards_parameters
    values: dict[str, Any] = {
        "device": device,
        "model": config.model,
        "seed": config.train.seed,
        "width_ratio": _width_ratio(config),
    }
    reduce = REDUCE_DTYPES[config.precision.reduce]
    if shards:
        from planner.engine.parallel.shard import shard_module
    for name, block in list(stage.layers.items()):
        materialise(block, f"layers.{name}.", **values)
        if shards:
            shard_module(block, groups, compute, reduce)
    materialise(stage, "", **values)
    if shards:
        shard_module(stage, groups, compute, reduce)
