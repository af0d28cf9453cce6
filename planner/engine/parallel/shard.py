"""ZeRO: states of one replica spread over workers that see different data.

Stages 2 and 3 are torch's FSDP2 (Rajbhandari et al., 2020; Zhao et al., 2023), stage 1 is a
partition of whole parameters: every worker keeps the optimizer states of its own part, updates it
and sends it to the others.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from planner.engine.models.layers import Block
from planner.engine.parallel.groups import Group, Groups
from planner.trial import ParallelLayout

__all__ = ["Partition", "shard_module"]


def shard_module(
    module: nn.Module, groups: Groups, compute: torch.dtype, reduce: torch.dtype
) -> None:
    """Shard a module's parameters in place; a model's blocks are sharded before the model."""
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
    )

    layout = groups.layout
    low = compute if compute is not torch.float32 else None
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
    fully_shard(
        module,
        mesh=groups.data_mesh(),
        mp_policy=MixedPrecisionPolicy(param_dtype=low, reduce_dtype=reduce),
        reshard_after_forward=_reshards(layout, module),
        offload_policy=offload if layout.cpu_offload else OffloadPolicy(),
    )


def _reshards(layout: ParallelLayout, module: nn.Module) -> bool:
    """Return whether parameters are dropped between forward and backward (ZeRO-3).

    Not in a pipeline, where every micro-batch would gather them again, nor for what is used last
    in the forward pass and first in the backward pass.
    """
    return layout.zero_stage == 3 and layout.pipeline_parallel == 1 and isinstance(module, Block)


class Partition:
    """ZeRO-1: which worker of the shard group updates which parameter."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], groups: Groups) -> None:
        self._group: Group = groups.group("shard")
        self._rank = groups.rank("shard")
        self._parts: list[list[tuple[str, nn.Parameter]]] = [
            [] for _ in range(groups.layout.shard_parallel)
        ]
        loads = [0] * len(self._parts)
        for name, parameter in sorted(named, key=lambda item: (-item[1].numel(), item[0])):
            lightest = loads.index(min(loads))
            self._parts[lightest].append((name, parameter))
            loads[lightest] += parameter.numel()

    @property
    def own(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that this worker updates."""
        return self._parts[self._rank]

    @torch.no_grad()
    def send_updates(self) -> None:
        """Bring every worker's updated part to all; a collective call."""
        for owner, part in enumerate(self._parts):
            if not part:
                continue
            values = [_local(parameter) for _, parameter in part]
            flat = torch.cat([value.reshape(-1) for value in values])
            dist.broadcast(flat, group=self._group, group_src=owner)
            pieces = flat.split([value.numel() for value in values])
            for value, piece in zip(values, pieces, strict=True):
                value.copy_(piece.view_as(value))


def _local(parameter: torch.Tensor) -> torch.Tensor:
    to_local = getattr(parameter, "to_local", None)
    return parameter.detach() if to_local is None else to_local().detach()
