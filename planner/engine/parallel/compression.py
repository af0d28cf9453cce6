"""PowerSGD: gradients cross the network as products of two thin matrices, with error feedback.

Vogels et al., 2019 (arXiv:1905.13727), algorithm 1 and 2. What a step leaves out is added to the
next gradient, so nothing is lost, only late.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

from planner.engine.parallel.gradients import sum_gradients
from planner.engine.parallel.groups import Group, sum_in

__all__ = ["PowerSgd", "saves_traffic"]


def saves_traffic(shape: torch.Size, rank: int) -> bool:
    """Return whether two factors of a rank are smaller than the matrix.

    >>> saves_traffic(torch.Size([64, 64]), 4), saves_traffic(torch.Size([64]), 4)
    (True, False)
    """
    return len(shape) == 2 and rank * sum(shape) < shape.numel()


class PowerSgd:
    """Averages the gradients of plain data-parallel workers.

    Args:
        named: All parameters. Those that factors would not make smaller are averaged whole.
        group: The workers.
        num_workers: How many they are.
        rank: Columns of the factors.
        seed: Of the first factors, which are the same on all workers.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        group: Group,
        num_workers: int,
        rank: int,
        seed: int,
    ) -> None:
        self._group, self._num_workers = group, num_workers
        self._whole: list[nn.Parameter] = []
        self._matrices: dict[str, nn.Parameter] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        """What a checkpoint keeps, by name: what each matrix's gradient still owes, and its factor."""
        for name, parameter in named:
            if not saves_traffic(parameter.shape, rank):
                self._whole.append(parameter)
                continue
            self._matrices[name] = parameter
            digest = hashlib.sha256(f"powersgd:{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            factor = torch.randn(parameter.shape[1], rank, generator=generator)
            self.tensors[f"{name}.error"] = torch.zeros_like(parameter.detach())
            self.tensors[f"{name}.factor"] = factor.to(parameter.device)

    @torch.no_grad()
    def average(self, number: int) -> None:
        """Replace the gradients, sums over `number` micro-batches, by their approximate mean."""
        sum_gradients(self._whole, self._group, self._num_workers)
        owed: dict[str, torch.Tensor] = {}
        for name, parameter in self._matrices.items():
            if parameter.grad is None:
                raise LookupError(f"{name} has no gradient to average")
            # Kept per micro-batch, whose number may change from step to step.
            owed[name] = self.tensors[f"{name}.error"].add_(parameter.grad, alpha=1.0 / number)
        left = self._mean({n: m @ self.tensors[f"{n}.factor"] for n, m in owed.items()})
        left = {name: torch.linalg.qr(factor).Q for name, factor in left.items()}
        right = self._mean({name: owed[name].T @ factor for name, factor in left.items()})
        for name, parameter in self._matrices.items():
            sent = left[name] @ right[name].T
            owed[name].sub_(sent)
            self.tensors[f"{name}.factor"].copy_(right[name])
            parameter.grad = sent.mul_(number)

    def _mean(self, factors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the mean of every tensor over the workers, sent as one."""
        if not factors:
            return factors
        flat = sum_in(self._group, torch.cat([f.reshape(-1) for f in factors.values()]))
        pieces = (flat / self._num_workers).split([f.numel() for f in factors.values()])
        return {
            name: piece.view_as(factors[name]) for name, piece in zip(factors, pieces, strict=True)
        }

    @torch.no_grad()
    def share_errors(self) -> None:
        """Give every worker the mean of what all owe; a collective call.

        Only that mean enters the averaged gradient, which is linear in what is sent, so training
        goes on as before, and one worker can write down the state of all.
        """
        errors = {n: t for n, t in self.tensors.items() if n.endswith(".error")}
        for name, mean in self._mean(errors).items():
            self.tensors[name].copy_(mean)
