"""Pipeline parallelism: stages of consecutive layers, run by torch's schedules.

B sequences, T tokens, D channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import pipelining

from planner.engine.models.transformer import Transformer
from planner.engine.parallel.groups import Groups
from planner.trial import ParallelLayout, TrialConfig

__all__ = ["Pipeline", "cut", "own_stages"]

_SCHEDULES: Final[dict[str, Any]] = {
    "gpipe": pipelining.ScheduleGPipe,
    "1f1b": pipelining.Schedule1F1B,
    "interleaved": pipelining.ScheduleInterleaved1F1B,
    "interleaved-zero-bubble": pipelining.ScheduleInterleavedZeroBubble,
    "zbv-zero-bubble": pipelining.ScheduleZBVZeroBubble,
    "dualpipe-v": pipelining.schedules.ScheduleDualPipeV,
}
_SINGLE_STAGE: Final = frozenset({"gpipe", "1f1b"})
_V_SHAPED: Final = frozenset({"zbv-zero-bubble", "dualpipe-v"})


def own_stages(layout: ParallelLayout, pipeline_rank: int) -> list[int]:
    """Return the numbers of the stages that a worker holds.

    Interleaved: r, r + p, ...; V-shaped: r and 2 p - 1 - r, so that the first worker holds the
    first and the last stage.
    """
    workers, chunks = layout.pipeline_parallel, layout.virtual_pipeline
    if layout.pipeline_schedule in _V_SHAPED:
        return [pipeline_rank, 2 * workers - 1 - pipeline_rank]
    return [pipeline_rank + chunk * workers for chunk in range(chunks)]


def cut(model: Transformer, stage: int, num_stages: int) -> Transformer:
    """Return a stage: the model without the parts that other stages hold, names unchanged."""
    part = copy.copy(model)
    part._modules = dict(model._modules)
    names = list(model.layers)
    base, extra = divmod(len(names), num_stages)
    first = stage * base + min(stage, extra)
    kept = names[first : first + base + (stage < extra)]
    part.layers = nn.ModuleDict({name: model.layers[name] for name in kept})
    is_first, is_last = stage == 0, stage == num_stages - 1
    if not is_first:
        part.positions = None
        if model.is_untied or not is_last:
            part.embedding = None
        else:
            part.embedding = copy.deepcopy(model.embedding)
    if not is_last:
        part.norm = part.head = None
    return part


class Pipeline:
    """The stages of one worker, and the order in which it runs them."""

    def __init__(
        self,
        stages: dict[int, Transformer],
        config: TrialConfig,
        groups: Groups,
        device: torch.device,
        mean_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> None:
        layout = config.layout
        self.num_stages = layout.pipeline_parallel * layout.virtual_pipeline
        self._stages, self._layout, self._width = stages, layout, config.model.d_model
        self._dtype = next(iter(stages.values())).compute
        self._group = groups.group("pipeline")
        self._owners = {
            stage: worker
            for worker in range(layout.pipeline_parallel)
            for stage in own_stages(layout, worker)
        }
        self.is_first, self.is_last = 0 in stages, self.num_stages - 1 in stages
        self.num_micro_batches = config.num_micro_batches
        self.device = device
        torch_stages = [
            pipelining.PipelineStage(stage, number, self.num_stages, device, group=self._group)
            for number, stage in stages.items()
        ]
        single = layout.pipeline_schedule in _SINGLE_STAGE
        self._schedule = _SCHEDULES[layout.pipeline_schedule](
            torch_stages[0] if single else torch_stages,
            n_microbatches=self.num_micro_batches,
            loss_fn=mean_loss,
            scale_grads=False,
        )

    def forward_backward(self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Run all micro-batches; return the summed loss on the worker of the last stage, else 0."""
        losses: list[torch.Tensor] = []
        inputs = (tokens_BT,) if self.is_first else ()
        last = {"target": targets_BT, "losses": losses} if self.is_last else {}
        self._schedule.step(*inputs, **last, return_outputs=False)
        if not losses:
            return torch.zeros((), device=self.device)
        return torch.stack([loss.detach() for loss in losses]).sum()

    def logits(self, tokens_BT: torch.Tensor) -> torch.Tensor | None:
        """Run one forward pass through all stages; return the logits where the last stage is.

        Stages pass their output on one after another: torch's V-shaped schedules cannot leave the
        backward passes out.
        """
        x: torch.Tensor = tokens_BT
        for number in range(self.num_stages):
            stage = self._stages.get(number)
            if stage is None:
                continue
            if number > 0 and number - 1 not in self._stages:
                x = torch.empty(
                    self._shape_between(tokens_BT), dtype=self._dtype, device=self.device
                )
                dist.recv(x, group=self._group, group_src=self._owners[number - 1])
            x = stage(x)
            if number + 1 < self.num_stages and number + 1 not in self._stages:
                dist.send(x.contiguous(), group=self._group, group_dst=self._owners[number + 1])
        return x if self.is_last else None

    def _shape_between(self, tokens_BT: torch.Tensor) -> tuple[int, int, int]:
        """Return the shape of what one stage sends to the next."""
        batch, length = tokens_BT.shape
        parts = self._layout.tensor_parallel if self._layout.sequence_parallel else 1
        return batch, length // parts, self._width
