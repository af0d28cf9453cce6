"""Which window of tokens a sample is: a pure function of its global index.

Samples are numbered over the whole training. A worker asks for the indices that are its own, so
the order does not depend on how many workers there are, and a resumed or resharded run goes on
with the next index.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["WindowOrder", "even_starts", "permute"]

_ROUNDS = 4
_MIX = np.uint64(0x9E3779B97F4A7C15)


def permute(indices: npt.NDArray[np.uint64], size: int, key: int) -> npt.NDArray[np.uint64]:
    """Return where a keyed permutation of `range(size)` sends the indices.

    A Feistel network over the next even power of two, walked until the value falls inside: a
    permutation in constant memory (Black and Rogaway, "Ciphers with arbitrary finite domains",
    2002, section 4).

    >>> sorted(permute(np.arange(5, dtype=np.uint64), 5, key=7).tolist())
    [0, 1, 2, 3, 4]
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    values = _feistel(indices.astype(np.uint64), half_bits, key)
    while (outside := values >= size).any():
        values[outside] = _feistel(values[outside], half_bits, key)
    return values


def _feistel(values: npt.NDArray[np.uint64], half_bits: int, key: int) -> npt.NDArray[np.uint64]:
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for turn in range(_ROUNDS):
        salt = np.uint64((key + turn * 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF)
        mixed = (right + salt) * _MIX
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
    return (left << bits) | right


def _key(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"order:{seed}:{epoch}".encode()).digest()[:8], "little")


@dataclass(slots=True)
class WindowOrder:
    """Windows of `length + 1` tokens, each read once per epoch in an order of the epoch's own.

    In every epoch the windows are cut at another offset, so a repeated epoch shows the same text
    at other positions.
    """

    num_tokens: int
    length: int
    """Tokens that a window predicts."""
    seed: int
    _epochs: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def num_windows(self) -> int:
        """Windows in an epoch; one is given up for the offset where there are two or more."""
        whole = (self.num_tokens - 1) // self.length
        return max(whole - 1, min(whole, 1))

    def starts(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the first token of each sample's window, shape [samples]."""
        starts = np.empty(len(indices), dtype=np.int64)
        epochs = indices // self.num_windows
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            key, offset = self._epoch(int(epoch))
            within = (indices[chosen] % self.num_windows).astype(np.uint64)
            windows = permute(within, self.num_windows, key).astype(np.int64)
            starts[chosen] = windows * self.length + offset
        return starts

    def _epoch(self, epoch: int) -> tuple[int, int]:
        if epoch not in self._epochs:
            key = _key(self.seed, epoch)
            spare = self.num_tokens - 1 - self.num_windows * self.length
            self._epochs = {epoch: (key, key % (min(spare, self.length - 1) + 1))}
        return self._epochs[epoch]


def even_starts(num_tokens: int, length: int, num_windows: int) -> npt.NDArray[np.int64]:
    """Return the starts of windows spread evenly over a split: those that validation reads.

    >>> even_starts(101, 10, 5).tolist()
    [0, 20, 40, 60, 80]
    """
    whole = (num_tokens - 1) // length
    chosen = min(num_windows, whole)
    return (np.arange(chosen, dtype=np.int64) * whole // max(chosen, 1)) * length
