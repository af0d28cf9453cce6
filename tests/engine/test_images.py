"""Images: the family `vit` and the task `classification`, from `.npz` files and folders."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from planner.costs.flops import shape_flops_per_token, train_flops_per_token
from planner.costs.params import count_params
from planner.costs.shapes import shape_of
from planner.engine import train
from planner.engine.data.images import Images
from planner.engine.models import build_model
from planner.engine.models.vit import cut_patches
from planner.errors import ConfigError, InfeasibleError
from planner.trial import ModelConfig
from planner.trial.support import check_supported


def test_a_small_vit_learns_the_direction_of_a_bar(vision):
    alone = train(vision())
    assert alone.val_accuracy >= 0.95
    assert alone.val_loss < 0.3 < alone.metrics["unigram_entropy"]


def test_a_vit_goes_on_after_an_interruption_as_if_there_had_been_none(vision, tmp_path):
    config = vision(train={"tokens": 16 * 32 * 8, "num_validations": 4})
    whole, halves = [], []
    train(config, on_metrics=lambda m: whole.append(m["val_loss"]))
    for stop_at in (2, None):
        train(
            config, checkpoint_dir=tmp_path,
            on_metrics=lambda m, s=stop_at: halves.append(m["val_loss"]) or len(halves) != s,
        )  # fmt: skip
    assert halves == whole


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_parameters_that_are_counted_are_those_of_the_model(vision, position, bias):
    model = vision(model={"position": position, "bias": bias, "norm": "layernorm"}).model
    built = build_model(model, torch.float32)
    assert count_params(model).total == sum(p.numel() for p in built.parameters())
    names = {name for name, _ in built.named_parameters()}
    assert {"patches.weight", "layers.0.attention.wq.weight", "norm.weight", "head.weight"} <= names


def test_the_shape_of_the_published_vit_comes_out():
    model = ModelConfig(
        family="vit", num_layers=12, d_model=768, num_heads=12, image_pixels=224, patch_pixels=16,
        num_classes=1000, position="learned", norm="layernorm", bias=True,
    )  # fmt: skip
    # ViT-B/16 has 86,567,656 parameters, of which a class token and its position are 2 * 768.
    assert count_params(model).total == 86_567_656 - 2 * 768
    shape = shape_of(model)
    assert (shape.family, shape.sequence_length, shape.is_causal) == ("vit", 196, False)
    assert train_flops_per_token(model) == shape_flops_per_token(shape)


def test_patches_are_cut_row_by_row():
    image = torch.arange(2 * 4 * 4).view(1, 2, 4, 4)
    patches = cut_patches(image, 2)
    assert patches.shape == (1, 4, 8)
    assert patches[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]


def test_every_patch_sees_every_other_one(vision):
    model = vision().model
    built = build_model(model, torch.float32)
    torch.manual_seed(0)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    block = built.layers["0"]
    x = torch.randn(1, 16, 32, requires_grad=True)
    block(x)[0, 0].sum().backward()
    assert (x.grad[0].abs().sum(1) > 0).all()


def folder_of(tmp_path, number=24):
    rng = np.random.default_rng(0)
    for place in range(number):
        home = tmp_path / f"class-{place % 3}"
        home.mkdir(exist_ok=True)
        pixels = rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(home / f"{place}.png")
    return tmp_path


def images_of(vision, path, **model):
    return Images.load(
        vision(model=model, data={"corpus": str(path), "validation_fraction": 0.3},
               batch={"sequences_per_step": 4}))  # fmt: skip


def test_a_folder_of_images_is_read_scaled_and_kept(vision, tmp_path):
    folder = folder_of(tmp_path)
    (folder / "class-0" / "notes.txt").write_text("no image")
    for channels in (1, 3):
        first, again = (images_of(vision, folder, image_channels=channels) for _ in range(2))
        assert len(first.train) + len(first.held_back) == 24
        batch, labels = first.training(0, 8)
        assert batch.shape == (8, channels, 8, 8)
        assert set(labels.tolist()) <= {0, 1, 2}
        assert isinstance(again.data.images, np.memmap)
        assert again.content_hash == first.content_hash
        assert torch.equal(again.training(0, 8)[0], batch)
    whole = first.training(0, 2 * len(first.train))[0]
    assert abs(float(whole.mean())) < 0.1
    assert float(whole.std()) == pytest.approx(1, abs=0.1)


def test_copies_of_images_are_left_out_and_counted(vision, bars, tmp_path):
    images, labels = bars(60)
    np.savez(
        tmp_path / "a.npz",
        images=np.concatenate([images, images[:7]]),
        labels=np.append(labels, labels[:7]),
    )
    found = images_of(vision, tmp_path / "a.npz")
    assert found.facts(0)["left_out_duplicates"] == 7
    assert not set(found.train) & set(found.held_back)


def test_the_unique_images_can_be_limited(vision):
    images = Images.load(vision(data={"max_unique_tokens": 16 * 100}))
    assert len(images.train) == 100
    assert images.facts(200)["epochs"] == 2
    seen = {tuple(image.flatten().tolist()) for image in images.training(0, 200)[0]}
    assert len(seen) == 100


def test_a_limit_on_images_leaves_every_class_of_a_folder(vision, tmp_path):
    found = Images.load(
        vision(
            model={"image_channels": 3, "num_classes": 3}, batch={"sequences_per_step": 4},
            data={"corpus": str(folder_of(tmp_path)), "max_unique_tokens": 16 * 6},
        )
    )  # fmt: skip
    assert len(found.train) == 6
    assert set(found.data.labels[found.train]) == {0, 1, 2}


def bad_images(folder, bars):
    good, labels = bars(60)
    np.savez(folder / "nolabels.npz", images=good)
    np.savez(folder / "large.npz", images=np.zeros((60, 9, 9), dtype=np.uint8), labels=labels)
    np.savez(folder / "classes.npz", images=good, labels=labels + 3)
    np.savez(folder / "ragged.npz", images=good, labels=labels[:-1])
    np.savez(folder / "pickled.npz", images=good, labels=np.array([{}] * 60, dtype=object))
    np.savez(folder / "few.npz", images=good[:20], labels=labels[:20])
    np.savez(folder / "texts.npz", images=good, labels=np.array(["a"] * 60))
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    (folder / "empty" / "class").mkdir(parents=True)
    bad = folder_of(folder / "bad") if (folder / "bad").mkdir() is None else folder
    (bad / "class-1" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    cut = folder_of(folder / "cut") if (folder / "cut").mkdir() is None else folder
    whole = (cut / "class-1" / "1.png").read_bytes()
    (cut / "class-1" / "1.png").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.npz", "does not exist"),
        ("nolabels.npz", "'labels' is missing"),
        ("large.npz", r"9 x 9 with 1 colour\(s\), model.image_pixels=8"),
        ("classes.npz", r"(?s)classes 3 to 6, model.num_classes=4.*Set model.num_classes to 7"),
        ("ragged.npz", r"labels \(59,\)"),
        ("pickled.npz", "no readable .npz"),
        ("few.npz", r"sequences_per_step=32"),
        ("texts.npz", "whole ones as labels"),
        ("broken.npz", "no readable .npz"),
        ("empty", "has no image in any"),
        ("bad", r"every image must be readable: .*class-1/broken.png is not"),
        ("cut", r"every image must be readable: .*class-1/1.png is not"),
    ],
)
def test_images_that_cannot_be_used_say_why(vision, bars, tmp_path, name, message):
    bad_images(tmp_path, bars)
    with pytest.raises(ConfigError, match=message):
        train(vision(data={"corpus": str(tmp_path / name)}))


def test_a_folder_of_images_needs_pillow(vision, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ConfigError, match=r"(?s)needs the package.*pip install 'planner\[data\]'"):
        images_of(vision, folder_of(tmp_path))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"patch_pixels": 3}}, "patch_pixels must divide image_pixels"),
        ({"model": {"sequence_length": 10}}, "give 16. Leave sequence_length out"),
        ({"model": {"num_experts": 2}}, "no experts"),
        ({"train": {"task": "next-token"}}, "family vit is for classification"),
    ],
)
def test_a_vit_that_contradicts_itself_is_refused(vision, sections, message):
    with pytest.raises(ConfigError, match=message):
        vision(**sections)


@pytest.mark.parametrize(
    "sections",
    [
        {"layout": {"tensor_parallel": 2}},
        {"layout": {"pipeline_parallel": 2}},
        {"layout": {"context_parallel": 2}},
        {"execution": {"chunked_loss": True}},
    ],
)
def test_a_vit_refuses_the_layouts_that_it_has_no_plan_for(vision, sections):
    with pytest.raises(InfeasibleError, match="spread over data and shards alone"):
        check_supported(vision(**sections))


def test_the_memory_of_a_vit_can_be_traced(vision, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(vision().model_dump(mode="json")))
    done = subprocess.run(
        [sys.executable, "-m", "planner.engine.estimate", str(path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    params = 4.0 * count_params(vision().model).total
    assert json.loads(done.stdout)["param_bytes"] == pytest.approx(params, rel=0.05)
