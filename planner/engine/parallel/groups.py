"""Which workers share what: one group of processes per dimension of the layout.

The dimensions, slowest first: pipeline, replicate (data), expert, shard (data), context, tensor.
Workers of one tensor group are neighbours, because they talk the most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch.distributed as dist

from planner.engine.torch_internals import flat_mesh
from planner.trial import ParallelLayout

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Groups", "make_groups"]

_NAMES: Final = ("pipeline", "replicate", "expert", "shard", "context", "tensor")

Group = Any
"""A ProcessGroup, or None where there is nobody to talk to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """This worker's place in every dimension; `*_rank` counts from 0 inside a group."""

    layout: ParallelLayout
    mesh: DeviceMesh | None = None
    """All dimensions; None for one worker and for plain data parallelism."""
    data_rank: int = 0
    """Among the workers that see different samples."""
    replicas: Group = None
    """The workers that see different tokens and hold the same parameters."""

    @property
    def num_data(self) -> int:
        """Workers that see different samples."""
        return self.layout.data_shards

    @property
    def num_replicas(self) -> int:
        """Workers that see different tokens: other samples, or other parts of the same ones."""
        return self.layout.data_shards * self.layout.context_parallel

    @property
    def shards_parameters(self) -> bool:
        """Whether gradients and parameters are sharded (ZeRO-2 and 3)."""
        return self.layout.shard_parallel > 1 and self.layout.zero_stage > 1

    @property
    def partitions_optimizer(self) -> bool:
        """Whether only optimizer states are spread (ZeRO-1)."""
        return self.layout.shard_parallel > 1 and self.layout.zero_stage == 1

    def group(self, name: str) -> Group:
        """Return this worker's group of a dimension; None for one that has a single worker."""
        if self.mesh is None or self.mesh[name].size() == 1:
            return None
        return self.mesh.get_group(name)

    def rank(self, name: str) -> int:
        """Return this worker's rank in a dimension."""
        return 0 if self.mesh is None else self.mesh.get_local_rank(name)

    def data_mesh(self) -> DeviceMesh:
        """Return the mesh over which parameters are sharded: 1-D, or 2-D with replicas first."""
        if self.mesh is None:
            raise LookupError("a layout that shards has a mesh")
        if self.layout.data_parallel > 1:
            return self.mesh["replicate", "shard"]
        return self.mesh["shard"]

    def sub_mesh(self, name: str) -> DeviceMesh:
        """Return the 1-D mesh of a dimension."""
        if self.mesh is None:
            raise LookupError("a layout that splits tensors has a mesh")
        return self.mesh[name]


def make_groups(layout: ParallelLayout, rank: int, device_type: str) -> Groups:
    """Return the groups of a worker; a collective call where there are several workers."""
    if layout.num_workers == layout.data_parallel and layout.expert_parallel == 1:
        world = dist.group.WORLD if layout.num_workers > 1 else None
        return Groups(layout=layout, data_rank=rank, replicas=world)
    from torch.distributed.device_mesh import init_device_mesh

    sizes = (
        layout.pipeline_parallel,
        layout.data_parallel // layout.expert_parallel,
        layout.expert_parallel,
        layout.shard_parallel,
        layout.context_parallel,
        layout.tensor_parallel,
    )
    mesh = init_device_mesh(device_type, sizes, mesh_dim_names=_NAMES)
    same = flat_mesh(mesh, ("replicate", "expert", "shard", "context"), "replicas")
    return Groups(
        layout=layout,
        mesh=mesh,
        data_rank=same.get_local_rank() // layout.context_parallel,
        replicas=same.get_group() if same.size() > 1 else None,
    )


def sum_in(group: Group, tensor: Any) -> Any:
    """Replace a tensor by its sum over a group and return it; nothing where there is no group."""
    if group is not None:
        dist.all_reduce(tensor, group=group)
    return tensor
