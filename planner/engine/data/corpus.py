"""Corpora: tokens of text or of token files, split into train and validation.

`python-stdlib` is the source code of the running interpreter's standard library: real text that is
on every machine. It changes with the Python version, so its hash is kept with every result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from planner.engine.data.cache import cached, key_of, read_facts
from planner.engine.data.documents import STDLIB, existing_path, list_documents
from planner.engine.data.texts import Text, num_kept, read_texts
from planner.engine.data.tokenizer import TextTokenizer, make_tokenizer
from planner.errors import ConfigError
from planner.trial import BYTES, DataConfig, SourceConfig, TrialConfig

__all__ = ["Corpus", "corpus_entropy", "load_corpora", "load_corpus", "unigram_entropy"]

Tokens = npt.NDArray[np.unsignedinteger]

_SCAN_TOKENS: Final = 50_000_000
"""Token files up to this length are checked whole against the vocabulary when they are opened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The two splits of a corpus, as arrays of tokens that may be memory-mapped."""

    name: str
    content_hash: str
    """sha256 of both splits' text and of the tokenizer, or of the size and sampled blocks of a token
    file."""
    train: Tokens
    validation: Tokens
    max_token: int
    """Largest token found; 0 where a token file is too large to be scanned."""
    bytes_per_token: float | None = None
    """Bytes of text over tokens in the validation split; None where there are tokens alone."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Documents that were left out, by reason."""


def load_corpus(data: DataConfig, vocab_size: int = 256) -> Corpus:
    """Return the corpus of a configuration that has one.

    Raises:
        ConfigError: As `load_corpora`.
    """
    (corpus,) = load_corpora(data, vocab_size).values()
    return corpus


def load_corpora(data: DataConfig, vocab_size: int = 256) -> dict[str, Corpus]:
    """Return the corpora of a configuration, their training splits cut to the unique tokens.

    Args:
        data: What to read.
        vocab_size: Tokens of a BPE that is to be trained, and the most that a tokenizer may have.

    Raises:
        ConfigError: One is missing, empty, leaves a split without text or does not go with the
            tokenizer.
    """
    sources = data.sources
    found = _load_texts(data, {k: s for k, s in sources.items() if not _is_tokens(s)}, vocab_size)
    corpora = {}
    for name, source in sources.items():
        whole = found[name] if name in found else _load_tokens(data, Path(source.corpus))
        corpora[name] = replace(whole, train=whole.train[: source.max_unique_tokens])
    return corpora


def corpus_entropy(config: TrialConfig) -> float:
    """Return the unigram entropy of the training split in nats per token.

    It is the loss of a model that knows how often each token occurs and nothing else:
    H = -sum_v p_v ln p_v.

    Raises:
        ConfigError: The corpus is missing or empty.
    """
    return unigram_entropy(load_corpus(config.data, config.model.vocab_size))


def unigram_entropy(corpus: Corpus) -> float:
    """Return the unigram entropy of a corpus's training split in nats per token."""
    tokens = corpus.train[:_SCAN_TOKENS]
    counts = np.bincount(tokens)
    shares = counts[counts > 0] / len(tokens)
    return -float(np.sum(shares * np.log(shares)))


def _is_tokens(source: SourceConfig) -> bool:
    if source.corpus == STDLIB:
        return False
    path = existing_path(source.corpus)
    return path.suffix == ".bin" and path.is_file()


def _load_texts(
    data: DataConfig, sources: Mapping[str, SourceConfig], vocab_size: int
) -> dict[str, Corpus]:
    if not sources:
        return {}
    texts = read_texts(data, {name: list_documents(data, s) for name, s in sources.items()})
    if data.tokenizer == BYTES:
        return {name: _of_bytes(text) for name, text in texts.items()}
    tokenizer = make_tokenizer(data, vocab_size, [*texts.values()])
    return {name: _of_tokens(text, tokenizer) for name, text in texts.items()}


def _of_bytes(text: Text) -> Corpus:
    return Corpus(
        name=text.name,
        content_hash=text.content_hash,
        train=text.train,
        validation=text.validation,
        max_token=text.max_byte,
        bytes_per_token=1.0,
        left_out=text.left_out,
    )


def _of_tokens(text: Text, tokenizer: TextTokenizer) -> Corpus:
    """Return a text's tokens, from the cache or encoded."""

    def make(folder: Path) -> None:
        facts = {}
        for name, split in (("train", text.train), ("validation", text.validation)):
            with (folder / f"{name}.bin").open("wb") as file:
                length = sum(file.write(part.data) for part in tokenizer.encode(split))
            facts[name] = [length // tokenizer.dtype.itemsize, tokenizer.dtype.str]
        (folder / "facts.json").write_text(json.dumps(facts))

    splits = cached(key_of("tokens", text.content_hash, tokenizer.content_hash), _read_tokens, make)
    digest = hashlib.sha256(f"{text.content_hash}{tokenizer.content_hash}".encode()).hexdigest()
    return Corpus(
        name=text.name,
        content_hash=digest,
        max_token=tokenizer.vocab_size - 1,
        bytes_per_token=len(text.validation) / len(splits["validation"]),
        left_out=text.left_out,
        **splits,
    )


def _read_tokens(folder: Path) -> dict[str, Tokens]:
    splits: dict[str, Tokens] = {}
    for name, (length, dtype) in read_facts(folder).items():
        splits[name] = np.memmap(folder / f"{name}.bin", dtype=np.dtype(dtype), mode="r")
        if len(splits[name]) != length:
            raise ValueError(f"{folder} is not whole")
    return splits


def _load_tokens(data: DataConfig, path: Path) -> Corpus:
    """Return the corpus of a token file, memory-mapped; its end is held back."""
    path = path.expanduser()
    dtype = np.dtype(f"<u{2 if data.token_dtype == 'uint16' else 4}")
    size = path.stat().st_size
    if size % dtype.itemsize or size < 2 * dtype.itemsize:
        raise ConfigError(
            f"a {data.token_dtype} token file must hold two or more whole tokens of "
            f"{dtype.itemsize} bytes: {path} has {size} bytes.",
            hint="Check data.token_dtype, or whether the file was cut off.",
        )
    tokens = np.memmap(path, dtype=dtype, mode="r")
    cut = num_kept(len(tokens), data.validation_fraction)
    return Corpus(
        name=str(path),
        content_hash=_sampled_hash(tokens),
        train=tokens[:cut],
        validation=tokens[cut:],
        max_token=int(tokens.max()) if len(tokens) <= _SCAN_TOKENS else 0,
    )


def _sampled_hash(tokens: Tokens, blocks: int = 64, block_tokens: int = 4096) -> str:
    """Return a hash of the length and of blocks spread over a file too large to read whole."""
    digest = hashlib.sha256(str(len(tokens)).encode())
    for start in np.linspace(0, max(len(tokens) - block_tokens, 0), blocks, dtype=np.int64):
        digest.update(tokens[start : start + block_tokens].tobytes())
    return digest.hexdigest()
