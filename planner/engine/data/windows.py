"""Batches of a corpus: windows of tokens and the tokens that follow them.

B sequences, T tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from planner.engine.data.corpus import Corpus, Tokens
from planner.engine.data.order import WindowOrder, even_starts
from planner.errors import ConfigError
from planner.trial import TrialConfig

__all__ = ["Batch", "Windows"]

Batch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets, each an int64 tensor of shape (B, T)."""


@dataclass(slots=True)
class Windows:
    """Reads the batches of one trial: training ones by global sample index, and validation."""

    corpus: Corpus
    order: WindowOrder
    validation_starts: npt.NDArray[np.int64]
    vocab_size: int

    @classmethod
    def of(cls, config: TrialConfig, corpus: Corpus) -> Windows:
        """Return the windows of a trial on a corpus.

        Raises:
            ConfigError: A split is shorter than it must be, or a token is not in the vocabulary.
        """
        length = config.model.sequence_length
        _check_vocabulary(corpus.max_token, config.model.vocab_size, corpus.name)
        order = WindowOrder(num_tokens=len(corpus.train), length=length, seed=config.train.seed)
        if order.num_windows < config.batch.sequences_per_step:
            raise ConfigError(
                "the training split must hold one batch: "
                f"{len(corpus.train)} tokens of {corpus.name} give {order.num_windows} windows of "
                f"{length}, sequences_per_step={config.batch.sequences_per_step}.",
                hint="Give a longer corpus, a shorter sequence_length or fewer sequences_per_step.",
            )
        if len(corpus.validation) <= length:
            raise ConfigError(
                "the validation split must hold one window: "
                f"{len(corpus.validation)} tokens of {corpus.name}, sequence_length={length}.",
                hint="Give a longer corpus or a larger validation_fraction.",
            )
        wanted = max(1, config.train.validation_tokens // length)
        starts = even_starts(len(corpus.validation), length, wanted)
        return cls(
            corpus=corpus,
            order=order,
            validation_starts=starts,
            vocab_size=config.model.vocab_size,
        )

    def training(self, first_sample: int, num_sequences: int) -> Batch:
        """Return the samples from a global index on, (num_sequences, T) each."""
        indices = np.arange(first_sample, first_sample + num_sequences, dtype=np.int64)
        return self._gather(self.corpus.train, self.order.starts(indices))

    def validation(self, indices: npt.NDArray[np.int64]) -> Batch:
        """Return the validation windows of the given numbers, (len(indices), T) each."""
        return self._gather(self.corpus.validation, self.validation_starts[indices])

    def _gather(self, tokens: Tokens, starts: npt.NDArray[np.int64]) -> Batch:
        length = self.order.length
        windows = np.empty((len(starts), length + 1), dtype=np.int64)
        for row, start in enumerate(starts.tolist()):
            windows[row] = tokens[start : start + length + 1]
        _check_vocabulary(int(windows.max()), self.vocab_size, self.corpus.name)
        whole = torch.from_numpy(windows)
        return whole[:, :-1].contiguous(), whole[:, 1:].contiguous()


def _check_vocabulary(max_token: int, vocab_size: int, name: str) -> None:
    if max_token >= vocab_size:
        raise ConfigError(
            f"every token must be below vocab_size: {name} holds token {max_token}, "
            f"vocab_size={vocab_size}.",
            hint=f"Set model.vocab_size to {max_token + 1} or more.",
        )
