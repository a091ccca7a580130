"""Log-probabilities of many texts, several in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..model.likelihood import log_probabilities
from .session import Session

TOKENS = 512  # of one pass, padding included, where a single window does not have more
LOGITS = 1 << 26  # bytes of one pass, likewise


def score_rows(session: Session, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Return the natural logarithm of the probability of each token but the first, for each row: [T - 1] float64.

    A row longer than the context is read in windows of `config.max_positions` tokens, each of which begins with the
    last token of the one before. Windows of nearly one length share a pass, padded behind: a token does not see what
    follows it.

    Raises:
        NumericsError: the model computes a NaN or an infinity.
    """
    size, windows = session.config.max_positions, list[tuple[int, int, np.ndarray]]()
    for row, ids in enumerate(rows):
        for start in range(0, len(ids) - 1, size - 1):
            windows.append((row, start, np.array(ids[start : start + size], np.int64)))
    found = [np.empty(max(0, len(ids) - 1)) for ids in rows]
    windows.sort(key=lambda window: -len(window[2]))
    for batch in _batches(windows, session.config.vocab_size):
        fed = np.zeros((len(batch), len(batch[0][2]) - 1), np.int64)
        for at, (_, _, window) in enumerate(batch):
            fed[at, : len(window) - 1] = window[:-1]
        logits = session.logits(fed)
        for at, (row, start, window) in enumerate(batch):
            targets = window[1:]
            found[row][start : start + len(targets)] = log_probabilities(logits[at, : len(targets)], targets)
    return found


def _batches(
    windows: Sequence[tuple[int, int, np.ndarray]], vocabulary: int
) -> Iterator[Sequence[tuple[int, int, np.ndarray]]]:
    """Cut windows, the longest first, into passes."""
    begin = 0
    while begin < len(windows):
        longest = len(windows[begin][2])
        rows = max(1, min(TOKENS, LOGITS // (4 * vocabulary)) // longest)
        yield windows[begin : begin + rows]
        begin += rows
