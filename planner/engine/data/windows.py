"""Batches of text: windows of tokens and the tokens that follow them, of one corpus or a mixture.

B sequences, T tokens of a window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from planner.engine.data.corpus import Corpus, load_corpora, unigram_entropy
from planner.engine.data.order import WindowOrder, even_starts, mixture_counts, mixture_places
from planner.errors import ConfigError
from planner.trial import ModelConfig, TrialConfig

__all__ = ["Batch", "Windows"]

Batch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets: tokens (B, T) and the next ones (B, T), or images (B, C, H, W) and classes (B,)."""


@dataclass(slots=True)
class Windows:
    """Reads the batches of one trial: training ones by global sample index, and validation.

    Lists hold an entry per source, in the order of `names`.
    """

    names: tuple[str, ...]
    corpora: tuple[Corpus, ...]
    weights: tuple[float, ...]
    validation_weights: tuple[float, ...]
    orders: tuple[WindowOrder, ...]
    validation_windows: npt.NDArray[np.int64]
    """Source and start of every validation window, shape [windows, 2]."""
    length: int
    vocab_size: int

    @classmethod
    def load(cls, config: TrialConfig) -> Windows:
        """Return the windows of a trial's corpora.

        Raises:
            ConfigError: A corpus cannot be used; as `load_corpora` and `of`.
        """
        return cls.of(config, load_corpora(config.data, config.model.vocab_size))

    @classmethod
    def of(cls, config: TrialConfig, corpora: Mapping[str, Corpus]) -> Windows:
        """Return the windows of a trial on corpora that are already there.

        Raises:
            ConfigError: A split is shorter than it must be, or a token is not in the vocabulary.
        """
        length, sources = config.model.sequence_length, config.data.sources
        total = sum(source.weight for source in sources.values())
        # Sources are validated on alike, whatever their weights, so that weights can be compared.
        wanted = max(1, config.train.validation_tokens // length // len(corpora))
        orders, windows = [], []
        for number, (name, corpus) in enumerate(corpora.items()):
            _check_vocabulary(corpus.max_token, config.model.vocab_size, corpus.name)
            order = WindowOrder(num_tokens=len(corpus.train), length=length, seed=config.train.seed)
            share = sources[name].weight / total
            _check_length(corpus, order, share, config.batch.sequences_per_step)
            starts = even_starts(len(corpus.validation), length, wanted)
            windows.append(np.stack([np.full_like(starts, number), starts], axis=1))
            orders.append(order)
        return cls(
            names=tuple(corpora),
            corpora=tuple(corpora.values()),
            weights=tuple(sources[name].weight for name in corpora),
            validation_weights=tuple(sources[name].validation_weight for name in corpora),
            orders=tuple(orders),
            validation_windows=np.concatenate(windows),
            length=length,
            vocab_size=config.model.vocab_size,
        )

    @classmethod
    def blank(cls, model: ModelConfig, number: int) -> Batch:
        """Return a batch of the right shapes that holds nothing."""
        tokens = torch.zeros(number, model.sequence_length, dtype=torch.int64)
        return tokens, tokens.clone()

    @property
    def content_hash(self) -> str:
        """Hash of what is read: of the corpus, or of all of a mixture and their weights."""
        if len(self.corpora) == 1:
            return self.corpora[0].content_hash
        parts = [(c.content_hash, w) for c, w in zip(self.corpora, self.weights, strict=True)]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def num_validation(self) -> int:
        """Windows that a validation reads, over all workers."""
        return len(self.validation_windows)

    def training(self, first_sample: int, num_sequences: int) -> Batch:
        """Return the samples from a global index on, (num_sequences, T) each."""
        indices = np.arange(first_sample, first_sample + num_sequences, dtype=np.int64)
        sources, places = mixture_places(indices, self.weights)
        starts = np.empty_like(indices)
        for number, order in enumerate(self.orders):
            mine = sources == number
            starts[mine] = order.starts(places[mine])
        return self._gather([corpus.train for corpus in self.corpora], sources, starts)

    def validation(self, numbers: npt.NDArray[np.int64]) -> Batch:
        """Return the validation windows of the given numbers, (len(numbers), T) each."""
        sources, starts = self.validation_windows[numbers].T
        return self._gather([corpus.validation for corpus in self.corpora], sources, starts)

    def _gather(
        self,
        tokens: list[npt.NDArray[np.unsignedinteger]],
        sources: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
    ) -> Batch:
        windows = np.empty((len(starts), self.length + 1), dtype=np.int64)
        for row, (source, start) in enumerate(zip(sources.tolist(), starts.tolist(), strict=True)):
            windows[row] = tokens[source][start : start + self.length + 1]
        _check_vocabulary(int(windows.max()), self.vocab_size, self.corpora[0].name)
        whole = torch.from_numpy(windows)
        return whole[:, :-1].contiguous(), whole[:, 1:].contiguous()

    def facts(self, num_sequences: int) -> dict[str, float]:
        """Return what is recorded of the data after so many training samples.

        `epochs` counts how often a training window was read in the mean; a mixture has the tokens
        and epochs of each source too.
        """
        read = mixture_counts(num_sequences, self.weights)
        epochs = [n / order.num_windows for n, order in zip(read, self.orders, strict=True)]
        entropies = [unigram_entropy(corpus) for corpus in self.corpora]
        found = {
            # 48 bits, which a number of a table of metrics holds exactly.
            "corpus_fingerprint": float(int(self.content_hash[:12], 16)),
            "unique_tokens": float(sum(len(corpus.train) for corpus in self.corpora)),
            "unigram_entropy": float(np.average(entropies, weights=self.validation_weights)),
            "epochs": num_sequences / sum(order.num_windows for order in self.orders),
        }
        for corpus in self.corpora:
            for reason, number in corpus.left_out.items():
                name = f"left_out_{reason}"
                found[name] = found.get(name, 0.0) + number
        if len(self.corpora) > 1:
            for name, corpus, times in zip(self.names, self.corpora, epochs, strict=True):
                found[f"unique_tokens.{name}"] = float(len(corpus.train))
                found[f"epochs.{name}"] = times
        return found


def _check_length(corpus: Corpus, order: WindowOrder, share: float, per_step: int) -> None:
    length, wanted = order.length, max(1, round(share * per_step))
    if order.num_windows < wanted:
        raise ConfigError(
            f"the training split must hold one batch: {len(corpus.train)} tokens of {corpus.name} "
            f"give {order.num_windows} windows of {length}, a batch has {wanted} of it "
            f"(sequences_per_step={per_step}).",
            hint="Give a longer corpus, a shorter sequence_length or fewer sequences_per_step.",
        )
    if len(corpus.validation) <= length:
        raise ConfigError(
            "the validation split must hold one window: "
            f"{len(corpus.validation)} tokens of {corpus.name}, sequence_length={length}.",
            hint="Give a longer corpus or a larger validation_fraction.",
        )


def _check_vocabulary(max_token: int, vocab_size: int, name: str) -> None:
    if max_token >= vocab_size:
        raise ConfigError(
            f"every token must be below vocab_size: {name} holds token {max_token}, "
            f"vocab_size={vocab_size}.",
            hint=f"Set model.vocab_size to {max_token + 1} or more.",
        )
