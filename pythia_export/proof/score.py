"""The one loop that scores windows: the original's logits beside those of others, token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..base.progress import SILENT, Progress
from ..corpus import Windows
from .metrics import TokenFigures

Logits = Callable[[int], np.ndarray]  # of the window of a number: [S, vocab] float32


def score(
    original: Logits, others: Mapping[str, Logits], windows: Windows, title: str, progress: Progress = SILENT
) -> dict[str, TokenFigures]:
    """Return the figures of every token of the windows, for each of the others beside the original.

    Logits exist for one window at a time.

    Raises:
        NumericsError: a NaN or an infinity on either side.
    """
    found = {name: TokenFigures() for name in others}
    with progress.track(title, len(windows.ids), "windows") as advance:
        for i, window in enumerate(windows.ids):
            expected = original(i)[:-1]
            for name, logits in others.items():
                found[name].add(expected, logits(i)[:-1], window[1:], windows.documents[i, 1:])
            advance(1)
    return found
