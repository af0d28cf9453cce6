"""Which window of tokens a sample is: a pure function of its global index.

Samples are numbered over the whole training. A worker asks for the indices that are its own, so
the order does not depend on how many workers there are, and a resumed or resharded run goes on
with the next index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = [
    "SampleOrder",
    "WindowOrder",
    "even_starts",
    "mixture_counts",
    "mixture_places",
    "permute",
]

_ROUNDS = 4
_SHARE_BITS = 20
"""Shares of a mixture are multiples of 2**-20, so that counting samples is exact."""
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
class SampleOrder:
    """Samples, each read once per epoch in an order of the epoch's own."""

    num_samples: int
    seed: int
    _keys: dict[int, int] = field(default_factory=dict)

    def samples(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return which sample each index is, shape [indices]."""
        found = np.empty(len(indices), dtype=np.int64)
        epochs = indices // self.num_samples
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            within = (indices[chosen] % self.num_samples).astype(np.uint64)
            found[chosen] = permute(within, self.num_samples, self.key(int(epoch)))
        return found

    def key(self, epoch: int) -> int:
        """Return the key of an epoch's order."""
        key = self._keys.get(epoch)
        if key is None:
            key = _key(self.seed, epoch)
            self._keys = {epoch: key}
        return key


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
    _order: SampleOrder = field(init=False)

    def __post_init__(self) -> None:
        self._order = SampleOrder(self.num_windows, self.seed)

    @property
    def num_windows(self) -> int:
        """Windows in an epoch; one is given up for the offset where there are two or more."""
        whole = (self.num_tokens - 1) // self.length
        return max(whole - 1, min(whole, 1))

    def starts(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the first token of each sample's window, shape [samples]."""
        starts = self._order.samples(indices) * self.length
        epochs = indices // self.num_windows
        spare = self.num_tokens - 1 - self.num_windows * self.length
        for epoch in np.unique(epochs).tolist():
            offset = self._order.key(int(epoch)) % (min(spare, self.length - 1) + 1)
            starts[epochs == epoch] += offset
        return starts


def mixture_places(
    indices: npt.NDArray[np.int64], weights: Sequence[float]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the source of each sample of a mixture, and which of the source's samples it is.

    The first source has sample i where floor(w (i + 1)) > floor(w i) for its share w; what it leaves
    over is numbered on and dealt to the others alike. So both are functions of i alone, and among
    the first n samples a source has its share of n, up to one sample per source before it.

    >>> mixture_places(np.arange(8), [3.0, 1.0])[0].tolist()
    [1, 0, 0, 0, 1, 0, 0, 0]
    """
    sources = np.full(len(indices), len(weights) - 1, dtype=np.int64)
    places = indices.astype(np.int64)
    left = np.ones(len(indices), dtype=bool)
    for source, share in enumerate(_shares(weights)):
        before = places * share >> _SHARE_BITS
        mine = left & (((places + 1) * share >> _SHARE_BITS) > before)
        sources[mine] = source
        left &= ~mine
        places = np.where(mine, before, np.where(left, places - before, places))
    return sources, places


def mixture_counts(num_samples: int, weights: Sequence[float]) -> list[int]:
    """Return how many of a mixture's first samples each source has.

    >>> mixture_counts(8, [3.0, 1.0])
    [6, 2]
    """
    counts = []
    left = num_samples
    for share in _shares(weights):
        counts.append(left * share >> _SHARE_BITS)
        left -= counts[-1]
    return [*counts, left]


def _shares(weights: Sequence[float]) -> list[int]:
    """Return each source's share of what the sources before it leave over, but the last one's."""
    whole = 2**_SHARE_BITS
    parts = [round(whole * w / sum(weights[i:])) for i, w in enumerate(weights[:-1])]
    return [min(max(part, 1), whole - 1) for part in parts]


def even_starts(num_tokens: int, length: int, num_windows: int) -> npt.NDArray[np.int64]:
    """Return the starts of windows spread evenly over a split: those that validation reads.

    >>> even_starts(101, 10, 5).tolist()
    [0, 20, 40, 60, 80]
    """
    whole = (num_tokens - 1) // length
    chosen = min(num_windows, whole)
    return (np.arange(chosen, dtype=np.int64) * whole // max(chosen, 1)) * length
