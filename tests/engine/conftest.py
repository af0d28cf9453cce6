"""Small trials, and gangs of real processes that run many of them: starting one takes the time."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.config import parse_config
from planner.trial import TrialConfig

WORKER = Path(__file__).with_name("gang_worker.py")
Outcome = dict[str, Any]
Gang = Callable[..., list[Outcome]]


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Corpora are cached for the session, not in the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 kB of text from the standard library."""
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_bytes(Path(argparse.__file__).read_bytes()[:40_000])
    return path


@pytest.fixture(scope="session")
def settings(text_file: Path) -> Callable[..., dict[str, Any]]:
    """A function that returns a small trial as plain data, with sections merged in."""

    def make(**sections: dict[str, Any]) -> dict[str, Any]:
        data: dict[str, Any] = {
            "model": {"num_layers": 4, "d_model": 32, "num_heads": 4, "sequence_length": 16},
            "train": {"tokens": 16 * 8 * 10, "num_validations": 5, "validation_tokens": 16 * 4},
            "batch": {"sequences_per_step": 8, "micro_batch_sequences": 1},
            # A larger epsilon keeps Adam from amplifying rounding where gradients are tiny.
            "optimizer": {"learning_rate": 1e-3, "gradient_clip_norm": 0.5, "epsilon": 1e-6},
            "data": {"corpus": str(text_file)},
        }
        for name, section in sections.items():
            data[name] = {**data.get(name, {}), **section}
        return data

    return make


@pytest.fixture(scope="session")
def small(settings: Callable[..., dict[str, Any]]) -> Callable[..., TrialConfig]:
    """A function that returns a small trial, with sections merged in."""
    return lambda **sections: parse_config(settings(**sections), TrialConfig)


@pytest.fixture(scope="session")
def gang(tmp_path_factory: pytest.TempPathFactory) -> Gang:
    """A function that runs orders one after another in a gang of so many processes."""

    def run(orders: list[dict[str, Any]], world_size: int, seconds: float = 240) -> list[Outcome]:
        folder = tmp_path_factory.mktemp(f"gang-{world_size}")
        return _run_in_gang(orders, world_size, folder, seconds)

    return run


def _run_in_gang(
    orders: list[dict[str, Any]], world_size: int, folder: Path, seconds: float
) -> list[Outcome]:
    """Return what rank 0 says of each order: `reports` and `result`.

    `states` are those of all ranks.
    """
    for number, order in enumerate(orders):
        order["world_size"] = world_size
        order["init_method"] = (folder / f"meeting-{number}").as_uri()
    (folder / "orders.json").write_text(json.dumps(orders))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    files = [str(folder / "orders.json"), str(folder / "out.json")]
    errors = [(folder / f"stderr-{rank}").open("w") for rank in range(world_size)]
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *files, str(rank)], env=environment, stderr=e
        )
        for rank, e in enumerate(errors)
    ]
    try:
        for worker in workers:
            worker.wait(seconds)
    finally:
        for worker, error in zip(workers, errors, strict=True):
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            error.close()
    said: list[list[Outcome]] = []
    for rank in range(world_size):
        assert workers[rank].returncode == 0, (folder / f"stderr-{rank}").read_text()[-3000:]
        said.append(json.loads((folder / f"out.{rank}.json").read_text()))
    for outcome, *all_ranks in zip(said[0], *said, strict=True):
        outcome["states"] = [one["result"]["state"] for one in all_ranks]
    return said[0]


@pytest.fixture(scope="session")
def losses() -> Callable[[Outcome], list[float]]:
    """A function that returns the training and validation losses of every report."""

    def read(outcome: Outcome) -> list[float]:
        return [report[key] for report in outcome["reports"] for key in ("train_loss", "val_loss")]

    return read


@pytest.fixture(scope="session")
def make_stepper() -> Callable[[TrialConfig], Any]:
    """A function that returns the stepper of a trial of one worker."""

    def make(config: TrialConfig) -> Any:
        import torch

        from planner.engine.parallel.workers import Workers
        from planner.engine.step import Stepper
        from planner.engine.tasks import load_samples

        workers = Workers(rank=0, world_size=1, device=torch.device("cpu"))
        return Stepper(config, workers, load_samples(config))

    return make


@pytest.fixture(scope="session")
def peak_bytes() -> Callable[[Callable[[], Any]], int]:
    """A function that returns the most that a call holds beside what there was, by torch's profiler."""

    def measure(call: Callable[[], Any]) -> int:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            call()
        events = profiler.profiler.kineto_results.events()
        held = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        return peak

    return measure


class Zeros:
    """Batches of zeros: memory does not depend on the tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def training(self, first_sample: int, num_sequences: int) -> tuple[Any, Any]:
        """Return inputs and targets."""
        import torch

        tokens = torch.zeros((num_sequences, self.length), dtype=torch.int64)
        return tokens, tokens.clone()


@pytest.fixture(scope="session")
def blank_stepper() -> Callable[[TrialConfig], Any]:
    """A function that returns the stepper of a trial of one worker on batches of zeros."""

    def make(config: TrialConfig) -> Any:
        import torch

        from planner.engine.parallel.workers import Workers
        from planner.engine.step import Stepper

        workers = Workers(rank=0, world_size=1, device=torch.device("cpu"))
        return Stepper(config, workers, Zeros(config.model.sequence_length))

    return make


@pytest.fixture(scope="session")
def bars() -> Callable[..., tuple[Any, Any]]:
    """A function that returns noisy images of one bar each; the class is its direction."""

    def make(number: int, seed: int = 0, side: int = 8) -> tuple[Any, Any]:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 4, number)
        y, x = np.mgrid[0:side, 0:side]
        lines = np.stack([y, x, x - y + side // 2, x + y - side // 2])
        places = rng.integers(2, side - 2, number)[:, None, None]
        images = 200 * (lines[labels] == places) + rng.integers(0, 56, (number, side, side))
        return images.astype(np.uint8), labels

    return make


@pytest.fixture(scope="session")
def npz(tmp_path_factory: pytest.TempPathFactory, bars: Callable[..., tuple[Any, Any]]) -> Path:
    """1,500 images of bars."""
    path = tmp_path_factory.mktemp("images") / "bars.npz"
    images, labels = bars(1500)
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="session")
def vision(npz: Path) -> Callable[..., TrialConfig]:
    """A function that returns a small trial on images, with sections merged in."""

    def make(**sections: dict[str, Any]) -> TrialConfig:
        data: dict[str, Any] = {
            "model": {
                "family": "vit", "num_layers": 2, "d_model": 32, "num_heads": 2, "num_classes": 4,
                "image_pixels": 8, "patch_pixels": 2, "image_channels": 1, "position": "learned",
            },
            "train": {"tokens": 16 * 32 * 120, "num_validations": 2, "validation_tokens": 16 * 128},
            "batch": {"sequences_per_step": 32},
            "optimizer": {"learning_rate": 1e-2, "epsilon": 1e-6},
            "data": {"corpus": str(npz)},
        }  # fmt: skip
        for name, section in sections.items():
            data[name] = {**data.get(name, {}), **section}
        return parse_config(data, TrialConfig)

    return make
