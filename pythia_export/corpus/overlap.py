"""Whether held-out text was held out: what quantisation has observed proves nothing of it."""

from __future__ import annotations

import numpy as np

from ..base.errors import RecipeError
from ..base.progress import Progress
from . import Windows

PIECE = 32  # tokens that do not come in a row twice by chance; licences and tables do
# Of the held-out text. Documents of the Pile have 0.1 % in common with others, modules of one Python library 12 %.
MOST, WORTH_TELLING = 0.25, 0.01


def require_held_out(text: Windows, calibration: Windows, progress: Progress) -> None:
    """A smaller share is told.

    Raises:
        RecipeError: more than `MOST` of `text` is calibration text.
    """
    share = seen_share(text, calibration)
    said = f"{100 * share:.0f} % of the held-out text ({text.source}) is calibration text ({calibration.source})"
    if share > MOST:
        raise RecipeError(
            said,
            hint="Give [verify] another file or split, or documents of its own: a file in common is read in the same "
            "order wherever `seed` is the same.",
        )
    if share > WORTH_TELLING:
        progress.note(said)


def seen_share(text: Windows, calibration: Windows) -> float:
    """Which share of the pieces of `text`, `PIECE` tokens each, lie anywhere in `calibration`.

    Both are streams that were cut into windows; a piece goes over the cuts.
    """
    size = min(PIECE, text.ids.size, calibration.ids.size)
    # A piece is told by a sum of its tokens, each times a number of its place, modulo 2**64.
    weights = np.random.default_rng(0).integers(0, 2**64, size, dtype=np.uint64)
    seen = np.unique(_sums(calibration.ids, weights))
    return float(np.isin(_sums(text.ids, weights)[::size], seen).mean())


def _sums(ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """uint64, of the pieces that begin at each token."""
    stream, count = ids.ravel().astype(np.uint64), ids.size - len(weights) + 1
    sums = np.zeros(count, np.uint64)
    for i, weight in enumerate(weights):
        sums += stream[i : i + count] * weight
    return sums
