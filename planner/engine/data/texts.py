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
from typing import Any, Final

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """The two splits of one source, as bytes that may be memory-mapped."""

    name: str
    """What to call it in messages."""
    content_hash: str
    """sha256 of both splits."""
    train: Bytes
    validation: Bytes
    left_out: Mapping[str, int]
    """Documents that were left out, by reason."""


def read_texts(data: DataConfig, sources: Mapping[str, Documents]) -> dict[str, Text]:
    """Return the text of every source, from the cache or from its documents.

    Raises:
        ConfigError: Documents cannot be read, or leave a split without text.
    """
    parts = [(name, documents.key()) for name, documents in sources.items()]
    key = key_of("text", parts, data.validation_fraction, data.near_duplicate_similarity)
    return cached(key, lambda folder: _read(folder, sources), lambda: _make(data, sources))


def _make(
    data: DataConfig, sources: Mapping[str, Documents]
) -> tuple[dict[str, Text], dict[str, bytes]]:
    copies = Deduplication(data.near_duplicate_similarity)
    texts, files, facts = {}, {}, {}
    for number, (name, documents) in enumerate(sources.items()):
        if documents.kind == "text":
            if data.near_duplicate_similarity is not None:
                raise ConfigError(
                    "near-duplicates are found among documents: "
                    f"{documents.path} is one text, data.near_duplicate_similarity="
                    f"{data.near_duplicate_similarity}.",
                    hint="Give a folder or a table of documents, or leave "
                    "data.near_duplicate_similarity out.",
                )
            splits, left_out = _split_text(documents, data.validation_fraction)
        else:
            splits, left_out = _split_documents(documents, data.validation_fraction, copies)
        for split, content in splits.items():
            if not content:
                raise ConfigError(
                    f"the {split} split of a corpus must hold text: {documents.path} leaves it "
                    f"empty at validation_fraction={data.validation_fraction}.",
                    hint="Give more documents, or another validation_fraction.",
                )
            files[f"{number}.{split}.bin"] = content
        digest = hashlib.sha256(splits["train"] + b"\0" + splits["validation"]).hexdigest()
        arrays = {split: np.frombuffer(c, dtype=np.uint8) for split, c in splits.items()}
        texts[name] = Text(
            name=str(documents.path), content_hash=digest, left_out=left_out, **arrays
        )
        facts[name] = {
            "content_hash": digest,
            "left_out": left_out,
            "bytes": {split: len(content) for split, content in splits.items()},
        }
    return texts, files | {"facts.json": json.dumps(facts).encode()}


def _read(folder: Path, sources: Mapping[str, Documents]) -> dict[str, Text]:
    facts = read_facts(folder)
    texts = {}
    for number, (name, documents) in enumerate(sources.items()):
        found: dict[str, Any] = facts[name]
        arrays = {
            split: np.memmap(folder / f"{number}.{split}.bin", dtype=np.uint8, mode="r")
            for split in ("train", "validation")
        }
        if any(len(array) != found["bytes"][split] for split, array in arrays.items()):
            raise ValueError(f"{folder} is not whole")
        texts[name] = Text(
            name=str(documents.path), content_hash=found["content_hash"],
            left_out=found["left_out"], **arrays,
        )  # fmt: skip
    return texts


def is_held_back(name: str, fraction: float) -> bool:
    """Return whether a document is validation's: a stable hash of its name, below the fraction."""
    value = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return value < fraction * 2.0**64


def num_kept(number: int, validation_fraction: float) -> int:
    """Return how many of so many tokens in a row are trained on; the end is held back."""
    return number - max(1, math.ceil(number * validation_fraction))


def _split_documents(
    documents: Documents, fraction: float, copies: Deduplication
) -> tuple[dict[str, bytes], dict[str, int]]:
    splits: dict[str, list[bytes]] = {"train": [], "validation": []}
    before = copies.num_exact, copies.num_near
    num_invalid = 0
    for name, content in documents.read():
        if content is None:
            num_invalid += 1
        elif content and not copies.repeats(content):
            splits["validation" if is_held_back(name, fraction) else "train"].append(content)
    joined = {name: b"".join(part + b"\0" for part in parts) for name, parts in splits.items()}
    return joined, {
        "duplicates": copies.num_exact - before[0],
        "near_duplicates": copies.num_near - before[1],
        "invalid": num_invalid,
    }


def _split_text(documents: Documents, fraction: float) -> tuple[dict[str, bytes], dict[str, int]]:
    """Split one text; its end is held back, from the start of a character on."""
    content = next(text for _, text in documents.read()) or b""
    cut = num_kept(len(content), fraction) if content else 0
    while cut > 0 and content[cut] & 0xC0 == 0x80:
        cut -= 1
    left_out = {"duplicates": 0, "near_duplicates": 0, "invalid": int(not content)}
    return {"train": content[:cut], "validation": content[cut:]}, left_out
