"""Several artifacts that were scored on the same tokens, two by two: what is common to both falls out of a difference.

Each is held to the original by itself too, but two intervals that overlap do not say that two artifacts are alike: most
of both is the text's. The difference is taken document by document before anything is averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from ..records.comparison import Pair
from ..records.parity import Mean, Scored
from .statistics import mean_of, mean_of_clusters


def pairs(scored: Mapping[str, Scored]) -> list[Pair]:
    """Return each artifact less each of those before it; all were scored on the same documents."""
    return [_pair(b, scored[b], a, scored[a]) for a, b in _in_order(list(scored))]


def _in_order(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from combinations(names, 2)


def _pair(name: str, mine: Scored, less: str, theirs: Scored) -> Pair:
    n = np.asarray(mine.sums.tokens, np.float64)

    def difference(figure: str) -> Mean:
        a, b = (np.asarray(getattr(x.sums, figure), np.float64) for x in (mine, theirs))
        return mean_of(mean_of_clusters(n, a - b))

    return Pair(name=name, less=less, delta_nll=difference("nll_quantized"), kld=difference("kld"))
