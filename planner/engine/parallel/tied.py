"""A tied head in a pipeline: the first and the last stage each hold the embedding's matrix.

Both start from the same values and get the sum of both gradients, so they stay equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from planner.engine.parallel.build import LocalModel
from planner.engine.parallel.gradients import local_gradients
from planner.engine.parallel.groups import Group, Groups

__all__ = ["TiedEmbedding"]


@dataclass(slots=True)
class TiedEmbedding:
    """The matrix on this worker: of the first stage, of the last stage, both or none."""

    original: nn.Parameter | None = None
    copy: nn.Parameter | None = None
    """The last stage's; left out of norms, which count the matrix once."""
    ends: Group = None
    """The first and the last worker of the pipeline, where they are not the same."""

    @classmethod
    def of(cls, local: LocalModel, groups: Groups) -> TiedEmbedding:
        """Return what this worker holds; a collective call in a pipeline."""
        layout = groups.layout
        if layout.pipeline_parallel == 1 or any(s.is_untied for s in local.stages.values()):
            return cls()
        ends = None if _is_folded(groups) else _ends_group(groups)
        last = layout.pipeline_parallel * layout.virtual_pipeline - 1
        tied = cls(ends=ends)
        for number, stage in local.stages.items():
            if number == 0 and stage.embedding is not None:
                tied.original = stage.embedding.weight
            elif number == last and stage.embedding is not None:
                tied.copy = stage.embedding.weight
        return tied

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Give both matrices the sum of their gradients; a collective call at the two ends."""
        held = [p for p in (self.original, self.copy) if p is not None]
        gradients = local_gradients(held)
        if len(gradients) == 2:
            total = gradients[0] + gradients[1]
            for gradient in gradients:
                gradient.copy_(total)
        elif gradients and self.ends is not None:
            dist.all_reduce(gradients[0], group=self.ends)


def _is_folded(groups: Groups) -> bool:
    """Return whether one worker holds both ends, as in the V-shaped schedules."""
    return groups.layout.pipeline_schedule in ("zbv-zero-bubble", "dualpipe-v")


def _ends_group(groups: Groups) -> Group:
    """Return the group of the first and the last worker of this worker's pipeline."""
    if groups.mesh is None:
        raise LookupError("a pipeline has a mesh")
    stages = groups.mesh.mesh.flatten(1)
    mine = None
    for column in range(stages.shape[1]):
        ranks = [int(stages[0, column]), int(stages[-1, column])]
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            mine = group
    return mine
