"""Copies of documents: exact ones by hash, near ones by MinHash."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

from planner.engine.data.extras import need

__all__ = ["Deduplication", "jaccard", "shingles"]

SHINGLE_WORDS: Final = 5
"""Words of a shingle (Lee et al., 2022, "Deduplicating training data makes language models better")."""
_PERMUTATIONS: Final = 128
_WEIGHTS: Final = (0.1, 0.9)
"""Of wrong and of missed candidates when bands are chosen: wrong ones are compared exactly."""
_MAX_BAND_SIMILARITY: Final = 0.95
"""Above it the library would choose a single band, which it refuses."""
_WORD: Final = re.compile(rb"\w+")


def shingles(text: bytes) -> set[bytes]:
    """Return the runs of five words of a text, in lower case; of a shorter text the one run it is."""
    words = _WORD.findall(text.lower())
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return {b" ".join(words[i : i + SHINGLE_WORDS]) for i in range(last)} if words else set()


def jaccard(first: set[bytes], second: set[bytes]) -> float:
    """Return |A & B| / |A | B|; 0 for two empty sets (Jaccard, 1912).

    >>> jaccard({b"a", b"b", b"c"}, {b"b", b"c", b"d"})
    0.5
    """
    together = len(first | second)
    return len(first & second) / together if together else 0.0


class Deduplication:
    """Tells which documents repeat an earlier one, and counts them.

    Candidates come from locality-sensitive hashing of MinHash signatures (Broder, 1997); whether
    one is a near-duplicate is decided on the shingles themselves, so none is left out wrongly. One
    near the threshold may be missed.
    """

    def __init__(self, similarity: float | None) -> None:
        self.num_exact = self.num_near = 0
        self._similarity = similarity
        self._seen: set[bytes] = set()
        self._kept: list[bytes] = []
        self._hashing: Any = None
        if similarity is not None:
            self._hashing = need("datasketch", "data.near_duplicate_similarity")
            self._bands = self._hashing.MinHashLSH(
                threshold=min(similarity, _MAX_BAND_SIMILARITY),
                num_perm=_PERMUTATIONS,
                weights=_WEIGHTS,
            )

    def repeats(self, document: bytes) -> bool:
        """Return whether a document is to be left out; if not, later ones are compared with it."""
        digest = hashlib.sha256(document).digest()
        if digest in self._seen:
            self.num_exact += 1
            return True
        self._seen.add(digest)
        if self._similarity is not None and self._is_near(document):
            self.num_near += 1
            return True
        return False

    def _is_near(self, document: bytes) -> bool:
        pieces = shingles(document)
        if not pieces:
            return False
        signature = self._hashing.MinHash(num_perm=_PERMUTATIONS, seed=1)
        signature.update_batch(sorted(pieces))
        for place in self._bands.query(signature):
            if jaccard(pieces, shingles(self._kept[place])) >= (self._similarity or 0.0):
                return True
        self._bands.insert(len(self._kept), signature, check_duplication=False)
        self._kept.append(document)
        return False
