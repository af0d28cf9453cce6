"""How fast the engine is: beside plain PyTorch in the same run, in CPU time.

    python benchmarks/engine.py [speed] [start-up] [data] [quality] [--iterations N]

Prints one table per part; without a part it prints all but `quality`, which takes minutes.
One thread per process; medians over interleaved rounds, so a busy machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from plain_gpt import PlainGpt, PlainTrainer

from planner.engine import train
from planner.engine.data.corpus import load_corpus
from planner.engine.parallel.workers import Workers
from planner.engine.schedules import learning_rate_factor
from planner.engine.step import Stepper
from planner.engine.tasks import load_samples
from planner.trial import DataConfig, TrialConfig

SHAPES = {"ctx 64, 12 sequences": (64, 12), "ctx 256, 16 sequences": (256, 16)}
LAYERS, HEADS, WIDTH = 4, 4, 128


def trial(length: int, sequences: int, compute: str = "fp32", **changes: object) -> TrialConfig:
    """Return the engine's configuration of the plain model's shape."""
    return TrialConfig.model_validate({
        "model": {
            "num_layers": LAYERS, "d_model": WIDTH, "num_heads": HEADS, "sequence_length": length,
            "norm": "layernorm", "position": "learned", "mlp": "gelu",
        },
        "train": {"tokens": length * sequences * 2000},
        "batch": {"sequences_per_step": sequences},
        "optimizer": {"learning_rate": 1e-3, "beta2": 0.99},
        "precision": {"compute": compute},
        **changes,
    })  # fmt: skip


def make_stepper(config: TrialConfig) -> Stepper:
    """Return the engine's stepper in this process."""
    workers = Workers(rank=0, world_size=1, device=torch.device("cpu"))
    return Stepper(config, workers, load_samples(config))


def engine_step(stepper: Stepper) -> Callable[[int], object]:
    """Return a function that takes the numbered step."""
    per_step = stepper.config.batch.sequences_per_step
    return lambda number: stepper.step(number * per_step, per_step, 0.5)


def median_cpu_seconds(steps: list[Callable[[int], object]], rounds: int) -> list[float]:
    """Return each function's median CPU seconds per call over interleaved rounds."""
    taken: list[list[float]] = [[] for _ in steps]
    for number in range(rounds + 3):
        for index, step in enumerate(steps):
            start = time.process_time()
            step(number)
            if number >= 3:
                taken[index].append(time.process_time() - start)
    return [statistics.median(seconds) for seconds in taken]


def speed(rounds: int) -> None:
    """Print tokens per CPU-second beside the plain model's."""
    print("| shape | plain fp32 | engine fp32 | ratio | engine bf16 | ratio |")
    print("|---|---|---|---|---|---|")
    for name, (length, sequences) in SHAPES.items():
        steppers = [make_stepper(trial(length, sequences, c)) for c in ("fp32", "bf16")]
        model = PlainGpt(LAYERS, HEADS, WIDTH, 256, length)
        tokens = steppers[0].samples.corpora[0].train
        plain = PlainTrainer(model, tokens, sequences, length, 1e-3)
        steps = [lambda _, p=plain: p.step(), *(engine_step(s) for s in steppers)]
        rates = [length * sequences / s for s in median_cpu_seconds(steps, rounds)]
        print(
            f"| {name} | {rates[0]:,.0f} | {rates[1]:,.0f} | {rates[1] / rates[0]:.2f} "
            f"| {rates[2]:,.0f} | {rates[2] / rates[0]:.2f} |"
        )
    print("(tokens per CPU-second, one thread)\n")


ALONE = """
import time; start = time.time()
from planner.trial import TrialConfig
from planner.engine import train_local
for attempt in ("cold", "warm, the second worker a new process"):
    seen = []
    def report(metrics):
        seen.append((time.time() - start, time.process_time() - used))
    used = 0.0 if attempt == "cold" else time.process_time()
    train_local(TrialConfig.model_validate(CONFIG), on_metrics=report)
    print(attempt, *seen[0], sep=";"); start = time.time()
"""
POOL = """
import sys, time
from planner.trial import TrialConfig
from planner.engine import train
rank = int(sys.argv[1])
for attempt in range(3):
    seen = []
    start, used = time.time(), time.process_time()
    def report(metrics):
        seen.append((time.time() - start, time.process_time() - used))
    train(TrialConfig.model_validate(CONFIG), rank=rank, world_size=2, on_metrics=report,
          init_method=f"file://{sys.argv[2]}/{attempt}")
    if seen and attempt == 2:
        print("warm, as in a sweep's pool of workers", *seen[0], sep=";")
"""


def start_up() -> None:
    """Print the seconds to the first step of fresh processes and of warm ones.

    CPU seconds, those of the first worker, are what other work on the machine disturbs least.
    """
    print("| workers | process | wall seconds to the first report | CPU seconds |")
    print("|---|---|---|---|")
    for workers in (1, 2):
        config = trial(64, 12, layout={"data_parallel": workers}).model_dump(mode="json")
        config["train"] |= {"tokens": 768, "num_validations": 1, "validation_tokens": 768}
        lines = _lines_of([[sys.executable, "-c", ALONE.replace("CONFIG", repr(config))]])
        if workers == 2:
            source = POOL.replace("CONFIG", repr(config))
            with tempfile.TemporaryDirectory() as folder:
                lines += _lines_of(
                    [[sys.executable, "-c", source, str(rank), folder] for rank in (0, 1)]
                )
        for line in lines:
            kind, seconds, cpu = line.split(";")
            kind = kind.split(",")[0] if workers == 1 else kind
            print(f"| {workers} | {kind} | {float(seconds):.2f} | {float(cpu):.2f} |")
    print()


def _lines_of(commands: list[list[str]]) -> list[str]:
    """Return what processes print that run side by side."""
    started = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a process of the start-up benchmark failed; its message is above")
    return [line for output in outputs for line in output.splitlines()]


def data(rounds: int) -> None:
    """Print what reading a batch takes of a step, and what making the tokens takes once."""
    tests = str(Path(sysconfig.get_path("stdlib"), "test"))
    mixture = {
        "library": {"corpus": "python-stdlib", "weight": 3},
        "tests": {"corpus": tests, "weight": 1},
    }
    sources: dict[str, tuple[dict[str, object], int]] = {
        "bytes": ({}, 256),
        "BPE of 4,096 tokens": ({"tokenizer": "bpe"}, 4096),
        "mixture of two, bytes": ({"mixture": mixture, "invalid_text": "drop"}, 256),
    }
    print("| shape | tokens | batch, CPU ms | step, CPU ms | share |")
    print("|---|---|---|---|---|")
    for shape, (length, sequences) in SHAPES.items():
        base = trial(length, sequences)
        for name, (fields, vocabulary) in sources.items():
            model = base.model.replace(vocab_size=vocabulary)
            config = base.replace(data=fields, model=model)
            stepper = make_stepper(config)
            read = stepper.samples.training
            steps = [lambda n, r=read, s=sequences: r(n * s, s), engine_step(stepper)]
            batch, step = median_cpu_seconds(steps, rounds)
            print(
                f"| {shape} | {name} | {batch * 1e3:.2f} | {step * 1e3:.1f} | {batch / step:.1%} |"
            )
    print()
    _preparation()


def _preparation() -> None:
    """Print the CPU seconds that making tokens of the standard library takes, nothing being kept."""
    print("| made once, then kept | CPU seconds | documents | tokens |")
    print("|---|---|---|---|")
    for name, fields, vocabulary in (
        ("bytes", {}, 256),
        ("bytes, near-duplicates left out", {"near_duplicate_similarity": 0.8}, 256),
        ("BPE of 4,096 tokens", {"tokenizer": "bpe"}, 4096),
    ):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["XDG_CACHE_HOME"] = cache
            start = time.process_time()
            corpus = load_corpus(DataConfig(**fields), vocabulary)
            seconds = time.process_time() - start
        left_out = ", ".join(f"{n} {reason}" for reason, n in corpus.left_out.items() if n)
        number = len(corpus.train) + len(corpus.validation)
        print(f"| {name} | {seconds:.1f} | without {left_out or 'none'} | {number:,} |")
    del os.environ["XDG_CACHE_HOME"]
    print()


def quality(iterations: int) -> None:
    """Print validation losses of the engine and of the plain model after the same training.

    The plain recipe: 12 sequences of 64 bytes a step, 1e-3 with warm-up and a cosine to 1e-4,
    weight decay 0.1, on about 1 MB of text. The plain model trains twice: from its own initial
    values on windows that it draws itself, and from the engine's values in the engine's order.
    """
    config = trial(
        64, 12,
        train={"tokens": 64 * 12 * iterations, "num_validations": 1, "validation_tokens": 65_536},
        schedule={
            "name": "cosine", "warmup_fraction": min(0.5, 100 / iterations), "final_fraction": 0.1,
        },
        data={"corpus": "python-stdlib", "max_unique_tokens": 1_000_000},
    )  # fmt: skip
    found = train(config).val_loss or float("nan")
    print("| iterations | plain | plain, validation loss | engine, validation loss | ratio |")
    print("|---|---|---|---|---|")
    for name in ("its own start and order", "the engine's start and order"):
        theirs = plain_loss(config, iterations, like_engine=name.startswith("the"))
        row = f"| {iterations} | {name} | {theirs:.4f} | {found:.4f} | {found / theirs:.3f} |"
        print(row, flush=True)
    print()


def plain_loss(config: TrialConfig, iterations: int, *, like_engine: bool) -> float:
    """Return the plain model's validation loss after its training."""
    stepper = make_stepper(config)
    model = PlainGpt(LAYERS, HEADS, WIDTH, 256, 64)
    trainer = PlainTrainer(model, stepper.samples.corpora[0].train, 12, 64, 1e-3)
    if like_engine:
        copy_start(model, dict(stepper.named))
    for number in range(1, iterations + 1):
        rate = 1e-3 * learning_rate_factor(config.schedule, number / iterations)
        batch = stepper.task.training_batch(12 * (number - 1), 12) if like_engine else None
        trainer.step(rate, batch)
    losses = []
    with torch.no_grad():
        for numbers in stepper.task.validation_numbers(0, 1, 64):
            losses.append(float(model(*stepper.task.validation_batch(numbers))))
    return statistics.fmean(losses)


@torch.no_grad()
def copy_start(model: PlainGpt, ours: dict[str, torch.Tensor]) -> None:
    """Give the plain model the engine's initial values."""
    model.tokens.weight.copy_(ours["embedding.weight"])
    model.positions.weight.copy_(ours["positions.weight"])
    for number, block in enumerate(model.blocks):
        prefix = f"layers.{number}."
        queries = [ours[f"{prefix}attention.w{name}.weight"] for name in "qkv"]
        block.qkv.weight.copy_(torch.cat(queries))
        block.out.weight.copy_(ours[f"{prefix}attention.wo.weight"])
        block.up.weight.copy_(ours[f"{prefix}mlp.w1.weight"])
        block.down.weight.copy_(ours[f"{prefix}mlp.w2.weight"])


def main() -> None:
    """Print the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help="speed, start-up, data, quality")
    parser.add_argument("--iterations", type=int, default=2000, help="of quality")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    parts = options.parts or ["speed", "start-up", "data"]
    torch.manual_seed(1337)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread\n")
    if "speed" in parts:
        speed(options.rounds)
    if "start-up" in parts:
        start_up()
    if "data" in parts:
        data(options.rounds)
    if "quality" in parts:
        quality(options.iterations)


if __name__ == "__main__":
    main()
