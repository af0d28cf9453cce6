"""Tokenizers: a byte-level BPE trained on a trial's own training text, or one from a file.

The byte-level BPE (Radford et al., 2019) has a token for every byte, so it reads any text, and the
NUL that sets documents apart is one of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from planner.engine.data.cache import cached, key_of
from planner.engine.data.extras import need
from planner.engine.data.texts import SEPARATOR, Bytes, Text
from planner.errors import ConfigError
from planner.trial import BPE, DataConfig

__all__ = ["TextTokenizer", "make_tokenizer"]

_PIECE_BYTES: Final = 1_000_000
"""Longer documents are cut at the ends of lines."""
_BATCH_BYTES: Final = 8_000_000
_BYTE_NUL: Final = "\u0100"
"""How byte-level tokenizers write byte 0."""
_ENDS_OF_TEXT: Final = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]", _BYTE_NUL)


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """Turns a split of text into tokens."""

    name: str
    content_hash: str
    vocab_size: int
    separator: int
    """Token after every document."""
    _tokenizer: Any

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Number format of the tokens: uint16 where the vocabulary allows it."""
        return np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")

    def encode(self, text: Bytes) -> Iterator[npt.NDArray[np.unsignedinteger]]:
        """Yield the tokens of a split, piece by piece."""
        for batch in _batches(text):
            encoded = self._tokenizer.encode_batch_fast(
                [content for content, _ in batch], add_special_tokens=False
            )
            for (_, is_end), found in zip(batch, encoded, strict=True):
                yield np.array(found.ids + [self.separator] * is_end, dtype=self.dtype)


def make_tokenizer(data: DataConfig, vocab_size: int, texts: Sequence[Text]) -> TextTokenizer:
    """Return the tokenizer of a trial: read from its file, or trained on the training text.

    Raises:
        ConfigError: The package is missing, the file is none of a tokenizer, or the vocabulary does
            not go with model.vocab_size.
    """
    library = need("tokenizers", f"data.tokenizer={data.tokenizer}")
    if data.tokenizer == BPE:
        return _trained(library, data, vocab_size, texts)
    return _from_file(library, data, vocab_size)


def _trained(
    library: Any, data: DataConfig, vocab_size: int, texts: Sequence[Text]
) -> TextTokenizer:
    limit = data.tokenizer_training_bytes
    hashes = [text.train_hash for text in texts]
    key = key_of("bpe", library.__version__, hashes, limit, vocab_size)

    def make(folder: Path) -> None:
        sample = _sample([text.train for text in texts], limit)
        (folder / "tokenizer.json").write_text(_train_bpe(library, sample, vocab_size))

    text = cached(key, lambda folder: (folder / "tokenizer.json").read_text(), make)
    tokenizer = library.Tokenizer.from_str(text)
    found = tokenizer.get_vocab_size()
    if found != vocab_size:
        raise ConfigError(
            f"a BPE must fill the vocabulary: the training text gives {found} tokens, "
            f"model.vocab_size={vocab_size}.",
            hint=f"Set model.vocab_size to {found} or less, or give more text.",
        )
    return TextTokenizer(
        f"{BPE}-{vocab_size}", _hash(text), found, tokenizer.token_to_id(_BYTE_NUL), tokenizer
    )


def _train_bpe(library: Any, texts: Iterator[str], vocab_size: int) -> str:
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


def _from_file(library: Any, data: DataConfig, vocab_size: int) -> TextTokenizer:
    path = Path(data.tokenizer).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
        tokenizer = library.Tokenizer.from_str(text)
    except OSError as error:
        raise ConfigError(
            f"data.tokenizer must be bytes, bpe or a file: {data.tokenizer}: {error.strerror}.",
            hint="Give the path of a tokenizer.json as the tokenizers library writes it.",
        ) from error
    except Exception as error:  # the library has no error class of its own
        raise ConfigError(
            f"{path} is no tokenizer that the tokenizers library reads: {error}.",
            hint="Write it with Tokenizer.save of that library.",
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found = tokenizer.get_vocab_size()
    if found > vocab_size:
        raise ConfigError(
            f"every token must be below vocab_size: {path} has {found} tokens, "
            f"model.vocab_size={vocab_size}.",
            hint=f"Set model.vocab_size to {found} or more.",
        )
    separator = _separator(tokenizer, data.separator_token, path)
    return TextTokenizer(path.name, _hash(f"{text}{separator}"), found, separator, tokenizer)


def _separator(tokenizer: Any, asked: str | None, path: Path) -> int:
    for token in (asked,) if asked is not None else _ENDS_OF_TEXT:
        number = tokenizer.token_to_id(token)
        if number is not None:
            return int(number)
    raise ConfigError(
        f"documents need a token after them: {path} has "
        f"{'none of the usual ends of text' if asked is None else f'no token {asked!r}'}.",
        hint="Set data.separator_token to one of its tokens.",
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _pieces(text: Bytes) -> Iterator[tuple[str, bool]]:
    """Yield documents in pieces, and whether each is the last of its document."""
    start = 0
    for end in [*np.flatnonzero(text == SEPARATOR).tolist(), len(text)]:
        while end - start > _PIECE_BYTES:
            cut = _line_end(text[start : start + _PIECE_BYTES])
            yield text[start : start + cut].tobytes().decode(errors="replace"), False
            start += cut
        if start < end or end < len(text):
            yield text[start:end].tobytes().decode(errors="replace"), end < len(text)
        start = end + 1


def _line_end(piece: Bytes) -> int:
    """Return where to cut a long piece: after its last line, or before its last character."""
    newlines = np.flatnonzero(piece == ord("\n"))
    starts = newlines + 1 if len(newlines) else np.flatnonzero(piece & 0xC0 != 0x80)
    return int(starts[-1]) or len(piece)


def _batches(text: Bytes) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    size = 0
    for piece in _pieces(text):
        batch.append(piece)
        size += len(piece[0])
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _sample(train: Sequence[Bytes], limit: int) -> Iterator[str]:
    """Yield training text up to a limit, drawn evenly by a hash of the pieces' numbers."""
    share = limit / sum(len(text) for text in train)
    number = 0
    for text in train:
        for piece, _ in _pieces(text):
            number += 1
            digest = hashlib.sha256(f"sample:{number}".encode()).digest()
            if int.from_bytes(digest[:8], "big") < share * 2.0**64:
                yield piece
