"""DataConfig: what a trial is trained on."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from planner.config import Config, PositiveCount, PositiveFloat

__all__ = ["BPE", "BYTES", "DataConfig", "SourceConfig"]

BYTES, BPE = "bytes", "bpe"
CorpusPath = Annotated[str, Field(min_length=1, max_length=4096)]
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=60)]


class SourceConfig(Config):
    """One corpus of a mixture."""

    corpus: CorpusPath
    """As `data.corpus`."""
    weight: PositiveFloat = 1.0
    """Share of the training samples, relative to the other sources' weights."""
    validation_weight: PositiveFloat = 1.0
    """Weight of the source's loss in `val_loss`; it does not follow `weight`, so that trials with
    other shares compare."""
    text_column: Annotated[str, Field(min_length=1)] | None = None
    """Column that holds the text; by default `data.text_column`."""
    max_unique_tokens: PositiveCount | None = None
    """Training tokens of this source to use at most."""


class DataConfig(Config):
    """What to train on."""

    corpus: CorpusPath = "python-stdlib"
    """`python-stdlib` (sources of the running interpreter's library), or a path: text file, folder,
    JSONL or Parquet table of documents, Hugging Face data set saved to disk, or `.bin` tokens; for
    classification a `.npz` file of images and labels or a folder with a subfolder per class."""
    mixture: dict[SourceName, SourceConfig] = Field(default_factory=dict)
    """Several corpora by name, in place of `corpus`; every prefix of the training holds them in the
    shares of their weights. A space reaches a weight as `data.mixture.NAME.weight`."""
    text_column: Annotated[str, Field(min_length=1)] = "text"
    """Column of a table of documents that holds the text."""
    dataset_split: Annotated[str, Field(min_length=1)] = "train"
    """Split of a Hugging Face data set that has several."""
    invalid_text: Literal["refuse", "drop", "replace", "keep"] = "refuse"
    """What becomes of documents that are not UTF-8: an error that names the place, left out and
    counted, read with U+FFFD for what cannot be read, or kept as they are (bytes only)."""
    near_duplicate_similarity: Annotated[float, Field(gt=0, le=1)] | None = None
    """Jaccard similarity of two documents' runs of five words from which on the later one is left
    out; none leaves out exact copies alone."""
    max_unique_tokens: PositiveCount | None = None
    """Training tokens to use at most; training on more repeats them in further epochs. A mixture
    sets it per source."""
    tokenizer: CorpusPath = BYTES
    """How text becomes tokens: `bytes`, `bpe` (a byte-level BPE of model.vocab_size tokens, trained
    on the training documents), or the path of a tokenizer.json; ignored for `.bin` tokens."""
    tokenizer_training_bytes: PositiveCount = 100_000_000
    """Text that a BPE is trained on at most, drawn evenly from the training documents."""
    separator_token: Annotated[str, Field(min_length=1)] | None = None
    """Token that a tokenizer.json puts after every document; by default its end-of-text token."""
    token_dtype: Literal["uint16", "uint32"] = "uint16"
    """Number format of a `.bin` file, little-endian."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the documents (or, of one file, of its end) held back for validation."""

    def __hash__(self) -> int:
        # A mapping has no hash of its own, and a configuration is a key in caches.
        return hash(self.model_dump_json())

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """The corpora by name; `corpus` alone stands under the empty name."""
        alone = SourceConfig(corpus=self.corpus, max_unique_tokens=self.max_unique_tokens)
        return dict(self.mixture) or {"": alone}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.mixture) == 1:
            raise ValueError(
                f"a mixture has two or more corpora (got {', '.join(self.mixture)}); "
                "name a single one in data.corpus"
            )
        if self.mixture and "corpus" in self.model_fields_set and self.corpus != "python-stdlib":
            raise ValueError(f"give corpus or mixture, not both (got corpus={self.corpus!r})")
        if self.mixture and self.max_unique_tokens is not None:
            raise ValueError(
                "a mixture limits its sources one by one: set data.mixture.NAME.max_unique_tokens "
                f"(got max_unique_tokens={self.max_unique_tokens})"
            )
        if self.invalid_text == "keep" and self.tokenizer != BYTES:
            raise ValueError(
                f"invalid_text: keep needs tokenizer: bytes (got {self.tokenizer!r}); a tokenizer "
                "reads text. Use invalid_text: replace or drop"
            )
        return self
