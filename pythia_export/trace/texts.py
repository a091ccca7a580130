"""Texts through the tapped graph, several at once, and what was read of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..base.errors import RecipeError
from ..model.hooks import LOGITS, tap_of
from ..model.neox import NeoXConfig
from ..runtime.change import Spec
from ..runtime.taps import Positions, TapSession, places_of

BATCH_TOKENS = 2048  # of one pass, padding included
GROUP = 32  # texts that are sorted by length, so that rows of a batch are of one length


@dataclass(frozen=True)
class TextTrace:
    """What was read of one text of T tokens, at P of them.

    `trace["blocks.3.hook_in"]` is a NumPy array, float32 (float16 of a graph that computes so): [P, d_model] of the
    residual stream, of outputs and of the final norm; [P, heads, d_head] of q, k, v and z; [P, d_mlp] of the MLP;
    [heads, P, T] of an attention pattern; [P, vocab] float32 of `logits`.
    """

    index: int
    """Which of the texts, 0 the first."""
    tokens: np.ndarray
    """Token ids [T] int64."""
    positions: np.ndarray
    """[P] int64: the tokens that the values are of."""
    values: Mapping[str, np.ndarray]
    """By the names of hooks, in the order of a pass."""

    def __getitem__(self, hook: str) -> np.ndarray:
        return self.values[hook]


def trace_texts(
    session: TapSession,
    texts: Sequence[np.ndarray],
    positions: Positions = "all",
    changes: Mapping[str, Spec] | None = None,
    first: int = 0,
) -> Iterator[TextTrace]:
    """Yield what `session` reads of each text, token ids [T] int64, in their order; `first` is the number of the first.

    Raises as `TapSession.read`; texts and positions are those that `require_fit` lets pass.
    """
    for begin in range(0, len(texts), GROUP):
        group = range(begin, min(begin + GROUP, len(texts)))
        found: dict[int, TextTrace] = {}
        for rows in _batches(sorted(group, key=lambda index: len(texts[index])), texts):
            found |= _batch(session, {index: texts[index] for index in rows}, positions, changes)
        yield from (replace(found.pop(index), index=first + index) for index in group)


def require_fit(texts: Sequence[np.ndarray], positions: Positions, config: NeoXConfig) -> None:
    """Check all texts before anything is computed.

    Raises:
        RecipeError: an empty text, or one longer than the context; a position beyond one.
    """
    for index, text in enumerate(texts):
        if not 0 < len(text) <= config.max_positions:
            raise RecipeError(
                f"text {index} has {len(text):,} tokens; 1 to {config.max_positions:,} were expected",
                hint="Cut longer texts into windows." if len(text) else "Leave empty texts out.",
            )
        if not isinstance(positions, str):
            places_of(positions, np.ones(len(text), np.int64))


def _batches(ordered: Sequence[int], texts: Sequence[np.ndarray]) -> Iterator[list[int]]:
    """Indices of texts, the shortest first, that go through the model together."""
    rows: list[int] = []
    for index in ordered:
        if rows and (len(rows) + 1) * len(texts[index]) > BATCH_TOKENS:
            yield rows
            rows = []
        rows.append(index)
    if rows:
        yield rows


def _batch(
    session: TapSession, texts: Mapping[int, np.ndarray], positions: Positions, changes: Mapping[str, Spec] | None
) -> dict[int, TextTrace]:
    longest = max(map(len, texts.values()))
    ids, mask = np.zeros((len(texts), longest), np.int64), np.zeros((len(texts), longest), np.int64)
    for row, text in enumerate(texts.values()):  # padded on the left
        ids[row, longest - len(text) :], mask[row, longest - len(text) :] = text, 1
    values = session.read(ids, mask, positions, changes)
    found = {}
    for row, (index, text) in enumerate(texts.items()):
        places = np.arange(len(text))
        if positions != "all":
            places = places[-1:] if isinstance(positions, str) else places[np.array(positions, np.int64)]
        kept = {hook: _of_row(hook, value[row], len(text), positions == "all") for hook, value in values.items()}
        found[index] = TextTrace(index, text, places, kept)
    return found


def _of_row(hook: str, value: np.ndarray, tokens: int, every: bool) -> np.ndarray:
    """A row's value without its padding; a copy, so that the batch need not be kept for one of its rows."""
    if hook != LOGITS and tap_of(hook)[0].shape == "pattern":
        value = value[:, -tokens if every else 0 :, -tokens:]
    elif every:
        value = value[-tokens:]
    return value.copy()
