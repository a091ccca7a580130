"""Documents one after another, as tokens, cut into windows; no more is tokenised than the windows need."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from ..base.errors import SourceError
from ..base.progress import Progress
from ..model.neox import NeoXConfig
from ..recipe import Calibration, Text
from .sources import Source, nameless

SLICE = 1 << 20  # characters of a document that are tokenised at a time: each takes some hundred bytes
_BREAK = re.compile(r"(?<=\S)\s")  # no token of a byte-level BPE lies across it


def pack(
    texts: Source, section: Text, count: int, tokenizer: Tokenizer, config: NeoXConfig, progress: Progress
) -> tuple[np.ndarray, np.ndarray, list[str | None]]:
    """Documents until there is enough: ids [count, length] int64, the document of each token, the subset of each.

    Raises:
        SourceError: there is not enough, counted.
    """
    length = section.sequence_length
    wanted = count * length
    end = [] if not section.eos or config.eos_token_id is None else [config.eos_token_id]
    if section.eos and not end:
        progress.note("The model has no end-of-text token (eos_token_id): documents follow one another without one")
    stream: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    names: list[str | None] = []
    have, n = 0, 0
    with progress.track(f"Tokenising {texts.name}", wanted, "tokens") as advance:
        for text, subset in texts.documents:
            ids = _tokens(tokenizer, text, wanted - have)
            if not ids:
                continue
            ids += end
            advance(min(len(ids), wanted - have))
            stream.append(np.array(ids, np.int64))
            owners.append(np.full(len(ids), n))
            names.append(subset)
            have, n = have + len(ids), n + 1
            if have >= wanted:
                break
    if have < wanted:
        raise _too_little(texts, section, count, have, n)
    packed, of = (np.concatenate(x)[:wanted].reshape(count, length) for x in (stream, owners))
    return packed, of, names


def _tokens(tokenizer: Tokenizer, text: str, wanted: int) -> list[int]:
    """Return a document's ids, or at least `wanted` of them: of 100 MB on one line its front may do."""
    ids: list[int] = []
    for piece in slices(text):
        ids += tokenizer.encode(piece, add_special_tokens=False).ids
        if len(ids) > wanted:
            break
    return ids


def slices(text: str) -> Iterator[str]:
    """Yield a text in slices of about `SLICE` characters, cut before white space, so that their tokens are its own.

    Where there is none for as long again (base64, genomes) it is cut all the same, and a token or two differ there.
    """
    begin = 0
    while len(text) - begin > SLICE:
        found = _BREAK.search(text, begin + SLICE, begin + 2 * SLICE)
        cut = found.start() if found is not None else begin + 2 * SLICE
        yield text[begin:cut]
        begin = cut
    yield text[begin:]


def _too_little(texts: Source, section: Text, count: int, have: int, documents: int) -> SourceError:
    if section.subsets and texts.seen and set(texts.seen) == {None}:
        return nameless(texts)
    fewer = "fewer samples" if isinstance(section, Calibration) else "fewer `tokens` (`verify --tokens`)"
    length, left_out = section.sequence_length, ""
    if section.subsets:
        seen = ", ".join(f"{name or 'of no part'} {n:,}" for name, n in texts.seen.most_common())
        left_out = f" of {', '.join(section.subsets)} (all that were read: {seen or 'none'})"
    empty = f"; {texts.tally.empty:,} rows have no text" if texts.tally.empty else ""
    return SourceError(
        f"{texts.name}: {have:,} tokens in {documents:,} documents{left_out}; {count:,} windows of {length:,} need "
        f"{count * length:,} tokens{empty}",
        hint=f"Give more text, or ask for {fewer} or a shorter sequence_length.",
    )
