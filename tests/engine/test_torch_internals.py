"""Contracts of the private interfaces of torch that the engine relies on: an upgrade fails here first."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from planner.engine.torch_internals import (
    around_waits,
    attention_operators,
    flat_mesh,
    meeting_store,
    scaled_product,
)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    """A process group of this process alone."""
    path = tmp_path_factory.mktemp("meeting") / "file"
    dist.init_process_group("gloo", init_method=path.as_uri(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Seen(TorchDispatchMode):
    """Notes the operators that run."""

    def __init__(self):
        super().__init__()
        self.operators = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.add(func)
        return func(*args, **(kwargs or {}))


def test_attention_on_this_device_is_an_operator_that_recomputation_keeps():
    # Else selective checkpointing would silently compute attention again.
    q = torch.randn(1, 2, 8, 4, requires_grad=True)
    with Seen() as seen:
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert seen.operators & set(attention_operators())


def test_workers_meet_in_a_store_that_carries_notes_and_serves_one_group_after_another(tmp_path):
    # Else a worker that runs out of memory could not tell the others why, nor they start again.
    store = meeting_store((tmp_path / "file").as_uri(), 0, 1, timedelta(seconds=10))
    notes = [dist.PrefixStore(f"attempt-{number}", store) for number in (0, 1)]
    notes[0].set("why", "out of memory")
    assert notes[0].get("why") == b"out of memory"
    assert not notes[1].check(["why"])


def test_nothing_keeps_a_process_group_that_was_left():
    # Else its connections stay open, and workers that wait for a failed one wait ten minutes.
    code = (
        "import sys, torch, torch.distributed as dist\n"
        "from planner.engine.torch_internals import load_what_keeps_groups\n"
        "load_what_keeps_groups()\n"
        "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
        "group = dist.group.WORLD\n"
        "torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=True)\n"
        "dist.destroy_process_group()\n"
        "sys.exit(sys.getrefcount(group) - 2)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_dimensions_of_a_mesh_become_one_group(process_group):
    # Else gradients could not be averaged over replicas of several kinds at once.
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (1, 1, 1), mesh_dim_names=("a", "b", "c"))
    flat = flat_mesh(mesh, ("a", "b"), "both")
    assert (flat.size(), flat.get_local_rank(), flat.ndim) == (1, 0, 1)
    assert dist.get_world_size(flat.get_group()) == 1


def test_the_fp8_product_scales_both_sides():
    # Else fp8 training would compute with wrong scales.
    x, w = (torch.eye(16).to(torch.float8_e4m3fn) for _ in range(2))
    product = scaled_product(x, w.t(), torch.tensor(2.0), torch.tensor(3.0), torch.bfloat16)
    assert torch.equal(product, 6 * torch.eye(16, dtype=torch.bfloat16))


@pytest.mark.parametrize("is_async", [False, True], ids=["waits inside", "waits outside"])
def test_every_wait_for_a_collective_is_seen_and_only_then(process_group, is_async):
    # Else the seconds of communication would be zero, or count the checkpoints' too.
    waits = []

    @contextmanager
    def note():
        waits.append(threading.current_thread().name)
        yield

    def reduce():
        work = dist.all_reduce(torch.ones(2), async_op=is_async)
        if is_async:
            work.wait()

    before = dist.Work.wait
    with around_waits(note, "checkpoint"):
        reduce()
        aside = threading.Thread(target=reduce, name="checkpoint_0")
        aside.start()
        aside.join()
    assert dist.Work.wait is before
    reduce()
    assert waits == [threading.current_thread().name]
