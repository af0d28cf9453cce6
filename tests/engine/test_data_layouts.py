"""Other data than one text: two workers learn from them what one process learns."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from planner.engine import train

LAYOUTS = ({"data_parallel": 2}, {"shard_parallel": 2, "zero_stage": 3})


def test_two_workers_learn_alike_from_images_and_from_mixtures(
    vision, small, settings, text_file, gang, losses
):
    sources = {
        "code": {"corpus": str(text_file), "weight": 3},
        "prose": {"corpus": str(Path(textwrap.__file__)), "weight": 1},
    }
    images = vision(train={"tokens": 16 * 32 * 10})
    mixture = small().replace(**settings(
        model={"num_layers": 2, "vocab_size": 300}, batch={"micro_batch_sequences": 2},
    ) | {"data": {"mixture": sources, "tokenizer": "bpe"}})  # fmt: skip
    expected = []
    for config in (images, mixture):
        reports = []
        train(config, on_metrics=reports.append)
        expected += [losses({"reports": reports})] * len(LAYOUTS)
    orders = [
        {"config": config.replace(layout=layout).model_dump(mode="json")}
        for config in (images, mixture)
        for layout in LAYOUTS
    ]
    for outcome, alone in zip(gang(orders, 2), expected, strict=True):
        assert losses(outcome) == pytest.approx(alone, abs=1e-5)
    assert outcome["result"]["val_bits_per_byte"] > 0
    assert set(outcome["result"]["metrics"]) >= {"val_loss.code", "val_loss.prose", "epochs.code"}
