"""Text of the sources of a trial: documents without their copies, split into train and validation.

A document is held back by a hash of its name, so a split does not change when documents are added.
Copies are left out over all sources together and before the split, so that none of a document held
back is trained on. Documents are set apart by a NUL.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt

from planner.engine.data.cache import cached, key_of, read_facts
from planner.engine.data.deduplication import Deduplication
from planner.engine.data.documents import Documents
from planner.errors import ConfigError
from planner.trial import DataConfig

__all__ = ["SEPARATOR", "Bytes", "Text", "is_held_back", "num_kept", "read_texts"]

Bytes = npt.NDArray[np.uint8]
SEPARATOR: Final = 0
"""Byte after every document."""
_SPLITS: Final = ("train", "validation")


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """The two splits of one source, as bytes that may be memory-mapped."""

    name: str
    """What to call it in messages."""
    content_hash: str
    """sha256 of both splits."""
    train: Bytes
    validation: Bytes
    train_hash: str
    """sha256 of the training split."""
    max_byte: int
    left_out: Mapping[str, int]
    """Documents that were left out, by reason."""


def read_texts(data: DataConfig, sources: Mapping[str, Documents]) -> dict[str, Text]:
    """Return the text of every source, from the cache or from its documents.

    Raises:
        ConfigError: Documents cannot be read, or leave a split without text.
    """
    parts = [(name, documents.key()) for name, documents in sources.items()]
    key = key_of("text", parts, data.validation_fraction, data.near_duplicate_similarity)
    return cached(
        key, lambda folder: _read(folder, sources), lambda folder: _make(data, sources, folder)
    )


def _make(data: DataConfig, sources: Mapping[str, Documents], folder: Path) -> None:
    copies = Deduplication(data.near_duplicate_similarity)
    facts = {}
    for number, (name, documents) in enumerate(sources.items()):
        if documents.kind == "text" and data.near_duplicate_similarity is not None:
            raise ConfigError(
                "near-duplicates are found among documents: "
                f"{documents.path} is one text, data.near_duplicate_similarity="
                f"{data.near_duplicate_similarity}.",
                hint="Give a folder or a table of documents, or leave "
                "data.near_duplicate_similarity out.",
            )
        paths = [folder / f"{number}.{split}.bin" for split in _SPLITS]
        with paths[0].open("wb") as train, paths[1].open("wb") as validation:
            if documents.kind == "text":
                left_out = _split_text(documents, data.validation_fraction, train, validation)
            else:
                fraction = data.validation_fraction
                left_out = _split_documents(documents, fraction, copies, train, validation)
        for split, path in zip(_SPLITS, paths, strict=True):
            if not path.stat().st_size:
                raise ConfigError(
                    f"the {split} split of a corpus must hold text: {documents.path} leaves it "
                    f"empty at validation_fraction={data.validation_fraction}.",
                    hint="Give more documents, or another validation_fraction.",
                )
        splits = [np.memmap(path, dtype=np.uint8, mode="r") for path in paths]
        digest = hashlib.sha256(splits[0].data)
        train_hash = digest.hexdigest()
        digest.update(b"\0")
        digest.update(splits[1].data)
        facts[name] = {
            "content_hash": digest.hexdigest(),
            "train_hash": train_hash,
            "max_byte": max(int(split.max()) for split in splits),
            "left_out": left_out,
            "bytes": [len(split) for split in splits],
        }
    (folder / "facts.json").write_text(json.dumps(facts))


def _read(folder: Path, sources: Mapping[str, Documents]) -> dict[str, Text]:
    texts = {}
    for number, (name, facts) in enumerate(read_facts(folder).items()):
        train, validation = (
            np.memmap(folder / f"{number}.{split}.bin", dtype=np.uint8, mode="r")
            for split in _SPLITS
        )
        if [len(train), len(validation)] != facts.pop("bytes"):
            raise ValueError(f"{folder} is not whole")
        path = str(sources[name].path)
        texts[name] = Text(name=path, train=train, validation=validation, **facts)
    return texts


def is_held_back(name: str, fraction: float) -> bool:
    """Return whether a document is validation's: a stable hash of its name, below the fraction."""
    value = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return value < fraction * 2.0**64


def num_kept(number: int, validation_fraction: float) -> int:
    """Return how many of so many tokens in a row are trained on; the end is held back."""
    return number - max(1, math.ceil(number * validation_fraction))


def _split_documents(
    documents: Documents,
    fraction: float,
    copies: Deduplication,
    train: IO[bytes],
    validation: IO[bytes],
) -> dict[str, int]:
    before = copies.num_exact, copies.num_near
    num_invalid = 0
    for name, content in documents.read():
        if content is None:
            num_invalid += 1
        elif content and not copies.repeats(content):
            (validation if is_held_back(name, fraction) else train).write(content + b"\0")
    return {
        "duplicates": copies.num_exact - before[0],
        "near_duplicates": copies.num_near - before[1],
        "invalid": num_invalid,
    }


def _split_text(
    documents: Documents, fraction: float, train: IO[bytes], validation: IO[bytes]
) -> dict[str, int]:
    """Split one text; its end is held back, from the start of a character on."""
    content = next(text for _, text in documents.read()) or b""
    cut = num_kept(len(content), fraction) if content else 0
    while cut > 0 and content[cut] & 0xC0 == 0x80:
        cut -= 1
    train.write(memoryview(content)[:cut])
    validation.write(memoryview(content)[cut:])
    return {"duplicates": 0, "near_duplicates": 0, "invalid": int(not content)}
