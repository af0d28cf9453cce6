"""What the engine uses of torch that torch does not promise to keep: here, and nowhere else.

`tests/engine/test_torch_internals.py` says of each what would break with it. The tracer of memory
(`fake_memory`) and the index of checkpoints (`sharded_checkpoint`) keep their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = [
    "around_waits", "attention_operators", "flat_mesh", "load_what_keeps_groups", "meeting_store", "scaled_product",
    "scaled_product_operators",
]  # fmt: skip

_ATTENTION: Final = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


def attention_operators() -> list[Any]:
    """Return the operators that attention becomes; it has another name on every device."""
    return [getattr(torch.ops.aten, name).default for name in _ATTENTION]


def load_what_keeps_groups() -> None:
    """Load, before there is a process group, the module whose defaults would keep it for ever.

    A group that is kept never closes its connections, so workers that wait for one that failed
    would wait until the time-out.
    """
    import_module("torch.distributed.nn.functional")


def meeting_store(init_method: str, rank: int, world_size: int, timeout: timedelta) -> Any:
    """Return the store through which workers meet; several process groups can use it in turn."""
    store, _, _ = next(rendezvous(init_method, rank, world_size, timeout=timeout))
    return store


def flat_mesh(mesh: DeviceMesh, names: Sequence[str], name: str) -> DeviceMesh:
    """Return several neighbouring dimensions of a mesh as one of a new name; a collective call."""
    return mesh[tuple(names)]._flatten(name)


def scaled_product(
    x: torch.Tensor, w: torch.Tensor, scale_x: torch.Tensor, scale_w: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """Return the product of two fp8 matrices, each with one scale."""
    return torch._scaled_mm(x, w, scale_a=scale_x, scale_b=scale_w, out_dtype=dtype)


def scaled_product_operators() -> list[Any]:
    """Return the operators that `scaled_product` becomes."""
    return [torch.ops.aten._scaled_mm.default]


@contextmanager
def around_waits(
    context: Callable[[], AbstractContextManager[None]], except_threads: str
) -> Iterator[None]:
    """Enter a context around every wait for a collective, those of FSDP and pipelines among them.

    Args:
        context: What to enter.
        except_threads: How the names of threads begin whose waits are no part of training.
    """
    work_class: Any = dist.Work
    original = work_class.wait

    def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name.startswith(except_threads):
            return original(work, *args, **kwargs)
        with context():
            return original(work, *args, **kwargs)

    work_class.wait = wait
    try:
        yield
    finally:
        work_class.wait = original
