"""Texts through the tapped graph, several at once, and what was read of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..base.errors import NumericsError, RecipeError
from ..model.hooks import LOGITS, hooks_of, tap_of
from ..model.neox import NeoXConfig
from ..runtime.change import Change, Spec, changes_of, shape_of_change, stretched
from ..runtime.taps import NotFinite, Positions, TapSession, places_of

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
            found |= _batch(session, {index: texts[index] for index in rows}, positions, changes, first)
        yield from (replace(found.pop(index), index=first + index) for index in group)


def require_fit(
    texts: Sequence[np.ndarray], positions: Positions, config: NeoXConfig, changes: Mapping[str, Spec] | None = None
) -> None:
    """Check all texts, and what is to be changed in them, before anything is computed.

    Raises:
        RecipeError: an empty text, or one longer than the context; a position beyond one; a change that does not fit.
        NumericsError: a change to what is not finite.
    """
    wanted = [(hook, change) for name, spec in (changes or {}).items() for hook in hooks_of([name], config)
              for change in changes_of(hook, spec, config)]  # fmt: skip
    fitting: set[int] = set()  # lengths
    for index, text in enumerate(texts):
        if not 0 < len(text) <= config.max_positions:
            raise RecipeError(
                f"text {index} has {len(text):,} tokens; 1 to {config.max_positions:,} were expected",
                hint="Cut longer texts into windows." if len(text) else "Leave empty texts out.",
            )
        if len(text) in fitting:
            continue
        try:
            if not isinstance(positions, str):
                places_of(positions, np.ones(len(text), np.int64))
            for hook, change in wanted:
                _require_change(hook, change, len(text), config, alone=len(texts) == 1)
        except RecipeError as e:
            raise RecipeError(f"text {index}: {e}" if len(texts) > 1 else str(e), hint=e.hint) from None
        fitting.add(len(text))


def _require_change(hook: str, change: Change, tokens: int, config: NeoXConfig, alone: bool) -> None:
    """`alone`: a value may have an axis of one row. With several texts no axis is theirs: they go by length."""
    try:
        places = places_of(change.positions, np.ones(tokens, np.int64))
    except RecipeError as e:
        hint = "Count from the end (-1 is the last token), or leave out texts that are too short."
        raise RecipeError(f"{hook}: {e}", hint=hint) from None
    wanted = shape_of_change(hook, change, len(places), tokens, config)
    one = alone and change.value.ndim == len(wanted) + 1 and len(change.value) == 1
    stretched(hook, change.value[0] if one else change.value, wanted)


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
    session: TapSession,
    texts: Mapping[int, np.ndarray],
    positions: Positions,
    changes: Mapping[str, Spec] | None,
    first: int,
) -> dict[int, TextTrace]:
    longest = max(map(len, texts.values()))
    ids, mask = np.zeros((len(texts), longest), np.int64), np.zeros((len(texts), longest), np.int64)
    for row, text in enumerate(texts.values()):  # padded on the left
        ids[row, longest - len(text) :], mask[row, longest - len(text) :] = text, 1
    try:
        values = session.read(ids, mask, positions, changes)
    except NotFinite as e:
        index = list(texts)[e.row]
        at = _read_of(positions, len(texts[index]))[e.read]
        raise NumericsError(f"text {first + index}: {e.hook} is not finite, first at token {at}", hint=e.hint) from e
    found = {}
    for row, (index, text) in enumerate(texts.items()):
        places = _read_of(positions, len(text))
        kept = {hook: _of_row(hook, value[row], len(text), positions == "all") for hook, value in values.items()}
        found[index] = TextTrace(index, text, places, kept)
    return found


def _read_of(positions: Positions, tokens: int) -> np.ndarray:
    """Return which tokens of a text are read."""
    every = np.arange(tokens)
    if positions == "all":
        return every
    return every[-1:] if isinstance(positions, str) else every[np.array(positions, np.int64)]


def _of_row(hook: str, value: np.ndarray, tokens: int, every: bool) -> np.ndarray:
    """A row's value without its padding; a copy, so that the batch need not be kept for one of its rows."""
    if hook != LOGITS and tap_of(hook)[0].shape == "pattern":
        value = value[:, -tokens if every else 0 :, -tokens:]
    elif every:
        value = value[-tokens:]
    return value.copy()
