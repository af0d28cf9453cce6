"""Labelled images: a `.npz` file, or a folder with a subfolder of images per class.

N images, C colours, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from planner.engine.data.cache import cached, key_of, read_facts
from planner.engine.data.documents import existing_path, stamps, walk
from planner.engine.data.extras import need
from planner.engine.data.order import SampleOrder, even_starts
from planner.engine.data.texts import is_held_back
from planner.engine.data.windows import Batch
from planner.errors import ConfigError, did_you_mean
from planner.trial import ModelConfig, TrialConfig

__all__ = ["Images"]

Array = npt.NDArray[Any]

_ENDINGS: Final = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_MODES: Final = {1: "L", 3: "RGB"}
_SCANNED_IMAGES: Final = 10_000
"""Images from which the mean and the deviation of colours are taken."""


@dataclass(frozen=True, slots=True)
class _Labelled:
    """Images (N, C, H, W) in their own number format, their classes (N,) and their names."""

    images: Array
    labels: npt.NDArray[np.int64]
    names: Sequence[str]


@dataclass(slots=True)
class Images:
    """Reads the batches of one trial: training ones by global sample index, and validation."""

    data: _Labelled
    train: npt.NDArray[np.int64]
    """Places of the images that are trained on."""
    held_back: npt.NDArray[np.int64]
    """Places of the images that a validation reads."""
    order: SampleOrder
    content_hash: str
    num_duplicates: int
    tokens_per_image: int
    mean: npt.NDArray[np.float32]
    """Of each colour over the training images, (C, 1, 1); so is the deviation."""
    deviation: npt.NDArray[np.float32]

    @classmethod
    def load(cls, config: TrialConfig) -> Images:
        """Return the images that a trial names.

        Raises:
            ConfigError: They cannot be read, do not go with the model, or are too few.
        """
        path = existing_path(config.data.corpus)
        data = _read_folder(path, config.model) if path.is_dir() else _read_npz(path)
        _check_shape(data, config.model, path)
        kept, digest = _without_copies(data)
        fraction = config.data.validation_fraction
        held = np.array([is_held_back(data.names[i], fraction) for i in kept], dtype=bool)
        limit = config.data.max_unique_tokens
        most = None if limit is None else limit // config.model.sequence_length
        train, rest = _evenly(kept[~held], most), kept[held]
        _check_number(train, rest, path, config)
        wanted = max(1, config.train.validation_tokens // config.model.sequence_length)
        mean, deviation = _colours(data.images, train)
        return cls(
            data=data, train=train, held_back=rest[even_starts(len(rest) + 1, 1, wanted)],
            order=SampleOrder(len(train), config.train.seed), content_hash=digest,
            num_duplicates=len(data.labels) - len(kept),
            tokens_per_image=config.model.sequence_length, mean=mean, deviation=deviation,
        )  # fmt: skip

    @classmethod
    def blank(cls, model: ModelConfig, number: int) -> Batch:
        """Return a batch of the right shapes that holds nothing."""
        side = model.image_pixels
        images = torch.zeros(number, model.image_channels, side, side)
        return images, torch.zeros(number, dtype=torch.int64)

    @property
    def num_validation(self) -> int:
        """Images that a validation reads, over all workers."""
        return len(self.held_back)

    def training(self, first_sample: int, num_sequences: int) -> Batch:
        """Return images (B, C, H, W) and classes (B,) from a global index on."""
        indices = np.arange(first_sample, first_sample + num_sequences, dtype=np.int64)
        return self._gather(self.train[self.order.samples(indices)])

    def validation(self, numbers: npt.NDArray[np.int64]) -> Batch:
        """Return the numbered validation images and their classes."""
        return self._gather(self.held_back[numbers])

    def _gather(self, places: npt.NDArray[np.int64]) -> Batch:
        images = (self.data.images[places].astype(np.float32) - self.mean) / self.deviation
        return torch.from_numpy(images), torch.from_numpy(self.data.labels[places])

    def facts(self, num_sequences: int) -> dict[str, float]:
        """Return what is recorded of the data after so many training samples.

        A token is a patch; the unigram entropy is that of the classes, in nats per image.
        """
        counts = np.bincount(self.data.labels[self.train])
        shares = counts[counts > 0] / counts.sum()
        return {
            "corpus_fingerprint": float(int(self.content_hash[:12], 16)),
            "unique_tokens": float(len(self.train) * self.tokens_per_image),
            "unigram_entropy": -float(np.sum(shares * np.log(shares))),
            "epochs": num_sequences / len(self.train),
            "left_out_duplicates": float(self.num_duplicates),
        }


def _read_npz(path: Path) -> _Labelled:
    """Return the arrays `images` (N, H, W) or (N, H, W, C) and `labels` (N,) of a file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ("images", "labels") if name not in file.files]
            if missing:
                raise ConfigError(
                    f"{path} must hold the arrays images and labels: {missing[0]!r} is missing. "
                    + did_you_mean(missing[0], file.files)
                )
            images, labels = file["images"], file["labels"]
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ConfigError(
            f"{path} is no readable .npz file of numbers: {error}.",
            hint="Write it with numpy.savez(path, images=..., labels=...).",
        ) from error
    if images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
        raise ConfigError(
            f"{path} must hold images of shape (N, H, W) or (N, H, W, C) and labels of shape (N,): "
            f"images has {images.shape}, labels {labels.shape}."
        )
    if not np.issubdtype(labels.dtype, np.integer) or images.dtype.kind not in "uif":
        raise ConfigError(
            f"{path} must hold numbers, and whole ones as labels: images is {images.dtype}, labels "
            f"{labels.dtype}."
        )
    images = images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)
    names = [f"row {number}" for number in range(len(labels))]
    return _Labelled(images, labels.astype(np.int64), names)


def _read_folder(path: Path, model: ModelConfig) -> _Labelled:
    """Return the images of a folder, scaled to the model's size, from the cache or decoded."""
    if model.image_channels not in _MODES:
        raise ConfigError(
            f"images of a folder have 1 or 3 colours: model.image_channels={model.image_channels}."
        )
    files = [file for file in walk(path, frozenset()) if file.suffix.lower() in _ENDINGS]
    files = [file for file in files if file.parent != path]
    if not files:
        raise ConfigError(
            f"a folder of images has a subfolder per class: {path} has no image in any.",
            hint=f"Put files such as {path}/CLASS/NAME.png there.",
        )
    names = [file.relative_to(path).as_posix() for file in files]
    classes = sorted({name.partition("/")[0] for name in names})
    labels = np.array([classes.index(name.partition("/")[0]) for name in names], dtype=np.int64)
    shape = (len(files), model.image_channels, model.image_pixels, model.image_pixels)
    seen = stamps(files)

    def read(folder: Path) -> Array:
        if read_facts(folder)["shape"] != list(shape):
            raise ValueError(f"{folder} is not whole")
        return np.memmap(folder / "images.bin", dtype=np.uint8, mode="r", shape=shape)

    def make(folder: Path) -> None:
        with (folder / "images.bin").open("wb") as out:
            for file in files:
                out.write(_decode(file, shape[1], shape[2]).tobytes())
        (folder / "facts.json").write_text(json.dumps({"shape": shape}))

    return _Labelled(cached(key_of("images", str(path), shape, seen), read, make), labels, names)


def _decode(path: Path, channels: int, pixels: int) -> npt.NDArray[np.uint8]:
    """Return an image file as (C, H, W), scaled to a square where it is of another size."""
    pillow = need("PIL.Image", "a folder of images")
    try:
        with pillow.open(path) as file:
            image = file.convert(_MODES[channels])
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise ConfigError(
            f"every image must be readable: {path} is not: {error}.",
            hint="Repair it, or move it out of the folder.",
        ) from error
    if image.size != (pixels, pixels):
        image = image.resize((pixels, pixels), pillow.Resampling.BILINEAR)
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if channels == 1 else np.moveaxis(array, 2, 0)


def _check_shape(data: _Labelled, model: ModelConfig, path: Path) -> None:
    wanted = (model.image_channels, model.image_pixels, model.image_pixels)
    if data.images.shape[1:] != wanted:
        colours, height, width = data.images.shape[1:]
        raise ConfigError(
            f"images must have the model's size: those of {path} are {height} x {width} with "
            f"{colours} colour(s), model.image_pixels={model.image_pixels} and "
            f"model.image_channels={model.image_channels}."
        )
    if len(data.labels) and not 0 <= data.labels.min() <= data.labels.max() < model.num_classes:
        raise ConfigError(
            f"every class must be below num_classes: {path} holds classes {data.labels.min()} to "
            f"{data.labels.max()}, model.num_classes={model.num_classes}.",
            hint=f"Set model.num_classes to {data.labels.max() + 1}.",
        )


def _evenly(places: npt.NDArray[np.int64], most: int | None) -> npt.NDArray[np.int64]:
    """Return at most so many places, spread over all: neighbours are often of one class.

    >>> _evenly(np.arange(10), 3).tolist()
    [0, 3, 6]
    """
    return places if most is None else places[even_starts(len(places) + 1, 1, most)]


def _check_number(train: Array, held_back: Array, path: Path, config: TrialConfig) -> None:
    needed = config.batch.sequences_per_step
    if len(train) < needed or not len(held_back):
        raise ConfigError(
            "images must make one batch of training and one of validation: "
            f"{path} gives {len(train)} and {len(held_back)}, sequences_per_step={needed}, "
            f"validation_fraction={config.data.validation_fraction}.",
            hint="Give more images, fewer sequences_per_step or another validation_fraction.",
        )


def _without_copies(data: _Labelled) -> tuple[npt.NDArray[np.int64], str]:
    """Return the places of images that repeat no earlier one, and a hash of everything."""
    whole = hashlib.sha256()
    seen: set[bytes] = set()
    kept = []
    for place, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()
        whole.update(digest + str(label).encode())
        if digest not in seen:
            seen.add(digest)
            kept.append(place)
    return np.array(kept, dtype=np.int64), whole.hexdigest()


def _colours(images: Array, places: Array) -> tuple[npt.NDArray[np.float32], ...]:
    """Return mean and deviation of each colour, (C, 1, 1)."""
    chosen = places[:: -(-len(places) // _SCANNED_IMAGES)]
    sample = images[chosen].astype(np.float64)
    mean, deviation = sample.mean((0, 2, 3)), sample.std((0, 2, 3))
    deviation = np.where(deviation > 0, deviation, 1.0)
    return tuple(x.astype(np.float32)[:, None, None] for x in (mean, deviation))
