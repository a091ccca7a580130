"""What logits say of the tokens that came.

In float64, for differences of 1e-4 nats are asked of sums over 50,000 classes. A few rows at a time, so that memory
does not grow with the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CHUNK_LOGITS = 1 << 17  # logits in work at a time: 1 MiB in float64, so that a handful of copies stay in the cache


def log_probabilities(logits: NDArray[Any], came: NDArray[np.int64]) -> Floats:
    """Return the natural logarithm of the probability of each token of `came` [T], float64 [T], by `logits` [T, V]."""
    found = np.empty(len(logits))
    for rows in chunks(logits):
        x = below_top(logits[rows])
        found[rows] = np.take_along_axis(x, came[rows, None], -1)[:, 0] - np.log(np.exp(x, out=x).sum(-1))
    return found


def log_softmax(logits: ArrayLike) -> Floats:
    """Return the logarithm of softmax over the last axis, float64."""
    x = below_top(np.asarray(logits))
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def below_top(logits: NDArray[Any]) -> Floats:
    """Return logits less the largest of each row, float64."""
    x: Floats = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x


def chunks(logits: NDArray[Any]) -> Iterator[slice]:
    """Yield the rows of logits [T, V] in slices of at most `CHUNK_LOGITS` logits."""
    step = max(1, CHUNK_LOGITS // logits.shape[1])
    return (slice(start, start + step) for start in range(0, len(logits), step))
