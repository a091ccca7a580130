"""From blocks of logits to figures. Pure numpy; a block is used and forgotten, so memory does not grow with the corpus.

`ExportDifference` compares logits themselves: two computations of the same model must agree number by number.
`TokenFigures` compares the distributions that logits stand for: a quantised model is another model, and what matters is
what it predicts. Log-softmax is in float64, for differences of 1e-4 nats are asked of sums over 50,000 classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.errors import NumericsError
from ..model.likelihood import Floats, below_top, chunks

# The magnitude of a difference is counted by the upper half of its float32 pattern (8 bits of exponent, 7 of mantissa),
# which orders as the numbers do: a histogram of fixed size whose bins are at most 1/128 wide, relative to their value.
_BINS = 1 << 15


def relative_error(got: ArrayLike | None, expected: ArrayLike) -> float:
    """Root of squares of the difference, relative to the expected; infinite of a value that is not there."""
    if got is None:
        return math.inf
    e = np.asarray(expected, np.float64)
    return float(np.linalg.norm(np.asarray(got, np.float64) - e)) / max(float(np.linalg.norm(e)), 1e-30)


class ExportDifference:
    """Absolute difference of logits, over every token and every entry of the vocabulary, as blocks come."""

    def __init__(self) -> None:
        self._max = 0.0
        self._counts = np.zeros(_BINS, np.int64)
        self._same_top = 0
        self._tokens = 0

    def add(self, got: ArrayLike, expected: ArrayLike) -> None:
        """One block: both [T, V], float32.

        Raises:
            NumericsError: a NaN or an infinity on either side.
        """
        a, b = _block(got, "got"), _block(expected, "expected")
        _same_shape(a, b)
        for rows in chunks(a):
            x, y = _finite(a[rows], "got"), _finite(b[rows], "expected")
            self._same_top += int((x.argmax(1) == y.argmax(1)).sum())
            difference = np.abs(x.astype(np.float64) - y).astype(np.float32)
            self._max = max(self._max, float(difference.max(initial=0)))
            self._counts += np.bincount((difference.view(np.uint32) >> 16).ravel(), minlength=_BINS)
        self._tokens += len(a)

    def result(self) -> dict[str, float]:
        """`max_abs`; `p999_abs`, the 99.9th percentile, from above by less than 1 %; `same_top`, the share of tokens
        whose likeliest successor is the same."""
        if not self._tokens:
            raise ValueError("no block of logits was added")
        rank = math.ceil(0.999 * int(self._counts.sum()))
        bin_ = int(np.searchsorted(self._counts.cumsum(), rank))
        upper = float(np.array([min(bin_ + 1, 0x7F7F) << 16], np.uint32).view(np.float32)[0])
        return {
            "max_abs": self._max,
            "p999_abs": min(upper, self._max),
            "same_top": self._same_top / self._tokens,
        }


class TokenFigures:
    """Per-token figures of original against quantised, window by window; `statistics.summarise` takes them all."""

    def __init__(self) -> None:
        self._parts: list[tuple[Floats, Floats, Floats, NDArray[np.bool_]]] = []
        self._clusters: list[NDArray[np.int64]] = []

    def add(self, original: ArrayLike, quantized: ArrayLike, targets: ArrayLike, cluster: ArrayLike) -> None:
        """One window: logits [T, V] twice, the tokens [T] that came, and their documents: one, or [T].

        Raises:
            NumericsError: a NaN or an infinity on either side.
        """
        part = token_figures(original, quantized, targets)
        self._parts.append(part)
        self._clusters.append(np.broadcast_to(np.asarray(cluster, np.int64), part[0].shape))

    @property
    def nll_original(self) -> Floats:
        """[tokens] nats."""
        return self._all(0)

    @property
    def nll_quantized(self) -> Floats:
        """[tokens] nats."""
        return self._all(1)

    @property
    def kld(self) -> Floats:
        """[tokens] nats: KL(original || quantised)."""
        return self._all(2)

    @property
    def same_top(self) -> NDArray[np.bool_]:
        """[tokens]: the likeliest token is the same."""
        return self._all(3)

    @property
    def clusters(self) -> NDArray[np.int64]:
        """[tokens]: the document of each token."""
        return np.concatenate(self._clusters) if self._clusters else np.zeros(0, np.int64)

    @property
    def windows(self) -> NDArray[np.int64]:
        """[tokens]: the window of each token."""
        return np.repeat(np.arange(len(self._parts)), [len(part[0]) for part in self._parts])

    def _all(self, i: int) -> NDArray[Any]:
        return np.concatenate([part[i] for part in self._parts]) if self._parts else np.zeros(0)


def token_figures(
    original: ArrayLike, quantized: ArrayLike, targets: ArrayLike
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """`nll_original`, `nll_quantized`, `kld` [T] float64 in nats and `same_top` [T] bool of one block of logits.

    Logits are [T, V], targets [T]. Of equal logits the one of lower index counts as the top, on both sides. With x and
    y the logits less their largest and Z the sums of their exponentials, the divergence is
    ``sum e^x (x - y) / Z_x - log Z_x + log Z_y``: two exponentials a logit, where log-softmax and back take three.

    Raises:
        NumericsError: a NaN or an infinity on either side.
    """
    p, q, target = _block(original, "original"), _block(quantized, "quantised"), np.asarray(targets)
    _same_shape(p, q)
    if target.shape != p.shape[:1]:
        raise ValueError(f"targets are {list(target.shape)} for logits {list(p.shape)}")
    nll_p, nll_q, kld = (np.empty(len(p)) for _ in range(3))
    same = np.empty(len(p), np.bool_)
    for rows in chunks(p):
        raw_p, raw_q, t = _finite(p[rows], "original"), _finite(q[rows], "quantised"), target[rows, None]
        same[rows] = raw_p.argmax(1) == raw_q.argmax(1)
        x, y = below_top(raw_p), below_top(raw_q)
        of_p, of_q = (np.take_along_axis(z, t, 1)[:, 0] for z in (x, y))
        weight = np.exp(x)
        total = weight.sum(1)
        x -= y
        apart = np.einsum("tv,tv->t", weight, x) / total
        log_p, log_q = np.log(total), np.log(np.exp(y, out=y).sum(1))
        nll_p[rows], nll_q[rows] = log_p - of_p, log_q - of_q
        # Exactly, it is never negative; summed in floating point it may be, by some 1e-16.
        kld[rows] = np.maximum(apart - log_p + log_q, 0)
    return nll_p, nll_q, kld, same


def bits_per_byte(nll: float, bytes_per_token: float) -> float:
    """From nats a token. Comparable between tokenizers, which perplexity is not."""
    return nll / math.log(2) / bytes_per_token


def _block(logits: ArrayLike, side: str) -> NDArray[Any]:
    block = np.asarray(logits)
    if block.ndim != 2 or not block.shape[1]:
        raise ValueError(f"{side} logits are {list(block.shape)}; [tokens, vocabulary] is expected")
    return block


def _same_shape(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.shape != b.shape:
        raise ValueError(f"logits are {list(a.shape)} on one side and {list(b.shape)} on the other")


def _finite(logits: NDArray[Any], side: str) -> NDArray[Any]:
    if not np.isfinite(logits).all():
        token, entry = np.argwhere(~np.isfinite(logits))[0]
        raise NumericsError(f"{side} logits hold {logits[token, entry]} (vocabulary entry {entry})")
    return logits
