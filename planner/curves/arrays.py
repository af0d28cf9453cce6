"""The array types of this package, exponentials that stay inside floating point, a normal sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

__all__ = [
    "BoolArray",
    "FloatArray",
    "IntArray",
    "TextArray",
    "safe_exp",
    "safe_log",
    "standard_noise",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
TextArray = NDArray[np.str_]

LARGEST_LOG = 690.0


def safe_exp(values: FloatArray) -> FloatArray:
    """Return exp, at most 1e299: a fit that wanders off meets a huge number, not infinity."""
    return np.asarray(np.exp(np.minimum(values, LARGEST_LOG)))


def safe_log(values: FloatArray) -> FloatArray:
    """Return log of values that are not negative, at least -690: a vanished term stays a number."""
    return np.asarray(np.log(np.maximum(values, np.exp(-LARGEST_LOG))))


def standard_noise(num: int, seed: int) -> FloatArray:
    """Return a shuffled normal sample without sampling error: its quantiles are exact."""
    levels = (np.arange(num) + 0.5) / num
    return np.asarray(np.random.default_rng(seed).permutation(ndtri(levels)))
