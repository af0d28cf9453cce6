"""Expert parallelism: the workers of a group hold different experts and exchange tokens."""

from __future__ import annotations

from torch import nn
from torch.distributed.tensor import DTensor, Shard

from planner.engine.models.experts import Experts
from planner.engine.models.transformer import Transformer
from planner.engine.parallel.groups import Groups

__all__ = ["spread_experts"]


def spread_experts(model: Transformer, groups: Groups) -> None:
    """Replace the matrices of all experts by those of this worker's run of experts."""
    mesh = groups.sub_mesh("expert")
    rank, size = groups.rank("expert"), groups.layout.expert_parallel
    for module in model.modules():
        if not isinstance(module, Experts):
            continue
        module.group = groups.group("expert")
        for name, whole in list(module.named_parameters()):
            part = whole.detach().chunk(size, 0)[rank].contiguous()
            spread = DTensor.from_local(
                part, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
            )
            module.register_parameter(name, nn.Parameter(spread))
