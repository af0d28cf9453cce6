"""Corpora: text or tokens on disk, split into train and validation.

`python-stdlib` is the source code of the running interpreter's standard library: real text that is
on every machine. It changes with the Python version, so its hash is kept with every result.
Text is read as bytes, one token each; documents are set apart by a NUL. Splits of text are cached
as token files in the user's cache folder, written whole and renamed, so that workers may race.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sysconfig
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from planner.engine.data.documents import TABLES, read_file, read_table, walk
from planner.errors import ConfigError
from planner.trial import DataConfig, TrialConfig

__all__ = ["Corpus", "Split", "corpus_entropy", "load_corpus", "unigram_entropy"]

Split = Literal["train", "validation"]
Tokens = npt.NDArray[np.unsignedinteger]

STDLIB: Final = "python-stdlib"
_NOT_STDLIB: Final = frozenset({"site-packages", "dist-packages", "__pycache__"})
_TESTS: Final = frozenset({"test", "tests", "idle_test", "testing"})
_SEPARATOR: Final = b"\0"
_SCAN_TOKENS: Final = 50_000_000
"""Token files up to this length are checked whole against the vocabulary when they are opened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The two splits of a corpus, as arrays of tokens that may be memory-mapped."""

    name: str
    content_hash: str
    """sha256 of both splits' content, or of the size and sampled blocks of a token file."""
    train: Tokens
    validation: Tokens
    max_token: int
    """Largest token found; 0 where a token file is too large to be scanned."""

    def fingerprint(self) -> float:
        """Return 48 bits of the hash as a number, which a table of metrics can hold exactly."""
        return float(int(self.content_hash[:12], 16))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """What is kept beside cached splits."""

    content_hash: str
    max_token: int
    train_tokens: int
    validation_tokens: int


def load_corpus(data: DataConfig) -> Corpus:
    """Return the corpus that a configuration names, its training split cut to the unique tokens.

    Raises:
        ConfigError: It is missing, empty, or leaves one split without text.
    """
    corpus = _load_whole(data)
    if data.max_unique_tokens is None:
        return corpus
    return replace(corpus, train=corpus.train[: data.max_unique_tokens])


def _load_whole(data: DataConfig) -> Corpus:
    if data.corpus == STDLIB:
        return _load_folder(data, Path(sysconfig.get_path("stdlib")), _stdlib_files())
    path = Path(data.corpus).expanduser()
    if not path.exists():
        raise ConfigError(
            f"data.corpus must be {STDLIB!r} or an existing path: {data.corpus!r} does not exist.",
            hint="Give a text file, a folder of text files, or a .bin file of tokens.",
        )
    if path.is_dir():
        return _load_folder(data, path, _text_files(path))
    if path.stat().st_size == 0:
        raise ConfigError(f"a corpus must hold text: {path} is empty.")
    if path.suffix == ".bin":
        return _load_tokens(data, path)
    return _load_table(data, path) if path.suffix in TABLES else _load_text(data, path)


def corpus_entropy(config: TrialConfig) -> float:
    """Return the unigram entropy of the training split in nats per token.

    It is the loss of a model that knows how often each token occurs and nothing else:
    H = -sum_v p_v ln p_v.

    Raises:
        ConfigError: The corpus is missing or empty.
    """
    return unigram_entropy(load_corpus(config.data))


def unigram_entropy(corpus: Corpus) -> float:
    """Return the unigram entropy of a corpus's training split in nats per token."""
    tokens = corpus.train[:_SCAN_TOKENS]
    counts = np.bincount(tokens)
    shares = counts[counts > 0] / len(tokens)
    return -float(np.sum(shares * np.log(shares)))


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    return [path for path in walk(root, _NOT_STDLIB | _TESTS) if path.suffix == ".py"]


def _text_files(root: Path) -> list[Path]:
    return list(walk(root, frozenset({"__pycache__"})))


def _is_validation(relative: str, fraction: float) -> bool:
    """Return whether a document is held back: a stable hash of its path, below the fraction."""
    value = int.from_bytes(hashlib.sha256(relative.encode()).digest()[:8], "big")
    return value < fraction * 2.0**64


def _load_folder(data: DataConfig, root: Path, files: list[Path]) -> Corpus:
    listing = [(p.relative_to(root).as_posix(), p.stat()) for p in files]
    files_seen = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in listing]
    key = _key(platform.python_version(), str(root), data.validation_fraction, files_seen)
    if (cached := _read_cache(data.corpus, key)) is not None:
        return cached
    named = (
        (relative, read_file(path)) for (relative, _), path in zip(listing, files, strict=True)
    )
    return _finish_documents(data, str(root), key, named)


def _load_table(data: DataConfig, path: Path) -> Corpus:
    """Return the corpus of a table of documents, split by row."""
    stat = path.stat()
    key = _key(
        str(path.resolve()),
        stat.st_size,
        stat.st_mtime_ns,
        data.text_column,
        data.validation_fraction,
    )
    if (cached := _read_cache(data.corpus, key)) is not None:
        return cached
    rows = read_table(path, data.text_column)
    named = ((f"row {number}", content) for number, content in enumerate(rows))
    return _finish_documents(data, str(path), key, named)


def _finish_documents(
    data: DataConfig, source: str, key: str, documents: Iterable[tuple[str, bytes]]
) -> Corpus:
    """Split named documents, drop empty ones and exact duplicates, and keep the splits."""
    splits: dict[Split, list[bytes]] = {"train": [], "validation": []}
    seen: set[bytes] = set()
    for name, content in documents:
        digest = hashlib.sha256(content).digest()
        if not content or digest in seen:
            continue
        seen.add(digest)
        held_back = _is_validation(name, data.validation_fraction)
        splits["validation" if held_back else "train"].append(content)
    train, validation = (_joined(splits[name]) for name in ("train", "validation"))
    return _finish_text(data, source, key, train, validation)


def _key(*parts: object) -> str:
    """Return the name under which splits are kept: of what they were made from."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _joined(documents: list[bytes]) -> bytes:
    return b"".join(document + _SEPARATOR for document in documents)


def _load_text(data: DataConfig, path: Path) -> Corpus:
    """Return the corpus of one text file; its end is held back."""
    stat = path.stat()
    key = _key(str(path.resolve()), stat.st_size, stat.st_mtime_ns, data.validation_fraction)
    if (cached := _read_cache(data.corpus, key)) is not None:
        return cached
    content = read_file(path)
    cut = _cut(len(content), data.validation_fraction)
    return _finish_text(data, str(path), key, content[:cut], content[cut:])


def _cut(num_tokens: int, validation_fraction: float) -> int:
    return num_tokens - max(1, math.ceil(num_tokens * validation_fraction))


def _finish_text(
    data: DataConfig, source: str, key: str, train: bytes, validation: bytes
) -> Corpus:
    for name, content in (("train", train), ("validation", validation)):
        if not content:
            raise ConfigError(
                f"the {name} split of a corpus must hold text: {source} leaves it empty "
                f"at validation_fraction={data.validation_fraction}.",
                hint="Give more documents, or another validation_fraction.",
            )
    arrays = [np.frombuffer(content, dtype=np.uint8) for content in (train, validation)]
    facts = _Facts(
        content_hash=hashlib.sha256(train + _SEPARATOR + validation).hexdigest(),
        max_token=max(int(array.max()) for array in arrays),
        train_tokens=len(train),
        validation_tokens=len(validation),
    )
    _write_cache(key, facts, train, validation)
    return _corpus(data.corpus, facts, *arrays)


def _corpus(name: str, facts: _Facts, train: Tokens, validation: Tokens) -> Corpus:
    return Corpus(
        name=name,
        content_hash=facts.content_hash,
        train=train,
        validation=validation,
        max_token=facts.max_token,
    )


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "planner" / "corpora"


def _read_cache(name: str, key: str) -> Corpus | None:
    folder = _cache_folder() / key
    try:
        facts = _Facts(**json.loads((folder / "facts.json").read_text()))
        train, validation = (
            np.memmap(folder / f"{split}.bin", dtype=np.uint8, mode="r")
            for split in ("train", "validation")
        )
    except (OSError, ValueError, TypeError):
        return None
    if (len(train), len(validation)) != (facts.train_tokens, facts.validation_tokens):
        return None
    return _corpus(name, facts, train, validation)


def _write_cache(key: str, facts: _Facts, train: bytes, validation: bytes) -> None:
    """Keep the splits for the next worker; without a writable cache every worker reads the text."""
    target = _cache_folder() / key
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as folder:
            whole = Path(folder) / "splits"
            whole.mkdir()
            (whole / "train.bin").write_bytes(train)
            (whole / "validation.bin").write_bytes(validation)
            (whole / "facts.json").write_text(json.dumps(asdict(facts)))
            whole.rename(target)
    except OSError:
        return


def _load_tokens(data: DataConfig, path: Path) -> Corpus:
    """Return the corpus of a token file, memory-mapped; its end is held back."""
    dtype = np.dtype(f"<u{2 if data.token_dtype == 'uint16' else 4}")
    size = path.stat().st_size
    if size % dtype.itemsize or size < 2 * dtype.itemsize:
        raise ConfigError(
            f"a {data.token_dtype} token file must hold two or more whole tokens of "
            f"{dtype.itemsize} bytes: {path} has {size} bytes.",
            hint="Check data.token_dtype, or whether the file was cut off.",
        )
    tokens = np.memmap(path, dtype=dtype, mode="r")
    cut = _cut(len(tokens), data.validation_fraction)
    facts = _Facts(
        content_hash=_sampled_hash(tokens),
        max_token=int(tokens.max()) if len(tokens) <= _SCAN_TOKENS else 0,
        train_tokens=cut,
        validation_tokens=len(tokens) - cut,
    )
    return _corpus(data.corpus, facts, tokens[:cut], tokens[cut:])


def _sampled_hash(tokens: Tokens, blocks: int = 64, block_tokens: int = 4096) -> str:
    """Return a hash of the length and of blocks spread over a file too large to read whole."""
    digest = hashlib.sha256(str(len(tokens)).encode())
    for start in np.linspace(0, max(len(tokens) - block_tokens, 0), blocks, dtype=np.int64):
        digest.update(tokens[start : start + block_tokens].tobytes())
    return digest.hexdigest()
