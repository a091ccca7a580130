"""Generation: token ids and text, each token decoded once. `continued` is the one way in.

Rows share one cache. A row that ends leaves it; the next prompt that waits takes the room. So a step computes what is
still wanted and no more, and any number of prompts needs the memory of `ROWS`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from ..base.errors import RecipeError
from ..model.neox import cache_bytes
from .cache import Cache
from .sampling import Draws, Sampling, ahead
from .session import Session
from .speculation import Draft, Drawn, Speculation
from .text import StreamDecoder, encode_prompt

ROWS = 32  # at once; more gain little (benchmarks/README.md, "Batches"), and each has a cache
CACHE_BYTES = 1 << 30  # of all rows at once, where a single one does not take more
TOKENS = 4096  # of prompts in one pass, padding included, where a single one does not have more
_SPARE = 32  # columns beyond what any row needs: so often at most all rows are moved to the left


class Piece(NamedTuple):
    """What one token adds to the text after prompt number `row`. `token` is None where the text has ended: `text` is
    then what was held back."""

    row: int
    token: int | None
    text: str


@dataclass(slots=True)
class _Row:
    """A text in the making. `token` is not fed yet; `left` counts those still wanted."""

    index: int
    prompt: Sequence[int]
    text: StreamDecoder
    rng: np.random.Generator
    numbers: Iterator[float]  # what `rng` gives, for draws without a draft
    left: int
    token: int = 0
    ended: bool = False


def continued(
    session: Session,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    draft: Draft | None = None,
) -> Iterator[Piece]:
    """Yield what follows each of `prompts` as it becomes certain, until an end token, a stop string or the count.

    With a `draft`, whose tokens have to be this model's (`require_same_tokens`), one prompt comes after another.

    An end token is not yielded. The token that completes a stop string is, without text. Pieces of several rows take
    turns; every row's last has no token.

    Raises:
        RecipeError: no prompt or an empty one, a sampling value out of range, or more tokens than the model has
            positions. On the call itself, not on the first `next`.
    """
    sampling = sampling or Sampling()
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise RecipeError("an empty prompt", hint="Begin with the document separator, <|endoftext|>, for free text.")
    if not isinstance(max_new_tokens, int):
        raise TypeError(f"max_new_tokens is a whole number, not a {type(max_new_tokens).__name__}")
    if max_new_tokens < 1:
        raise RecipeError(f"max_new_tokens {max_new_tokens}; a number of 1 or more was expected")
    longest, positions = max(map(len, prompts)), session.config.max_positions
    if longest + max_new_tokens > positions:
        raise RecipeError(
            f"a prompt of {longest:,} tokens and {max_new_tokens:,} new ones make {longest + max_new_tokens:,}; "
            f"this model has {positions:,} positions",
            hint=f"Ask for at most {positions - longest:,} new tokens." if longest < positions else "",
        )
    generators = sampling.generators(len(prompts))
    rows = [
        _Row(index, prompt, StreamDecoder(tokenizer, stop), rng, ahead(rng), max_new_tokens)
        for index, (prompt, rng) in enumerate(zip(prompts, generators, strict=True))
    ]
    if draft is not None:
        return (piece for row in rows for piece in _by_draft(session, draft, row, sampling))
    return _in_turn(session, rows, longest + max_new_tokens, sampling)


def _by_draft(session: Session, draft: Draft, row: _Row, sampling: Sampling) -> Iterator[Piece]:
    for token in Speculation(session, draft, row.prompt, row.left, sampling, Drawn(row.rng)):
        yield Piece(row.index, token, row.text.push(token))
        if row.text.stopped:
            break
    yield Piece(row.index, None, row.text.finish())


def _in_turn(session: Session, rows: Sequence[_Row], room: int, sampling: Sampling) -> Iterator[Piece]:
    """Let rows in, step, take a token for each, let out those that ended."""
    waiting = deque(sorted(rows, key=lambda row: -len(row.prompt)))  # the longest first, so that others find room later
    places = _places(session, len(rows), len(waiting[0].prompt), room)
    if places < len(rows):
        room = min(session.config.max_positions, room + _SPARE)
    ends = frozenset(session.config.eos_token_ids)
    cache = session.start(places, room)
    moves = cache.movable and session.moves_rows
    draws = Draws(sampling) if sampling.temperature > 0 else None
    active: list[_Row] = []
    while waiting or active:
        if waiting and (not active or (moves and _room(cache, waiting[0], places - len(active), places))):
            stepped = _next(waiting, places - len(active))
            if not active:
                cache = _emptied(session, cache, len(stepped))
            logits = _enter(session, cache, [row.prompt for row in stepped])
            active += stepped
        else:
            if cache.length == cache.max_len:
                cache.drop_padding()
            stepped = active
            logits = session.decode(cache, [row.token for row in active], unchecked=draws is not None)
        ended = False
        for row, token in zip(stepped, _tokens(logits, draws, stepped), strict=True):
            if row.ended:
                continue
            row.token, row.left = token, row.left - 1
            if token in ends:
                row.ended = True
            else:
                yield Piece(row.index, token, row.text.push(token))
                row.ended = row.left == 0 or row.text.stopped
            if row.ended:
                ended = True
                yield Piece(row.index, None, row.text.finish())
        if ended:
            active = _without_ended(cache, active, moves)


def _room(cache: Cache, row: _Row, free: int, places: int) -> bool:
    """Whether so many rows are free that a pass over prompts is worth its while, and the next fits in."""
    return 8 * free >= places and len(row.prompt) <= cache.length


def _places(session: Session, rows: int, longest: int, room: int) -> int:
    """Return how many rows share the cache at a time."""
    a_row = cache_bytes(session.config, session.kv_dtype.name, room)
    most = min(rows, ROWS, max(1, CACHE_BYTES // a_row))
    return most if session.moves_rows else min(most, max(1, TOKENS // longest))


def _next(waiting: deque[_Row], free: int) -> list[_Row]:
    """Take the next rows whose prompts, padded to one length, are not too many tokens for one pass."""
    count = min(free, len(waiting), max(1, TOKENS // len(waiting[0].prompt)))
    return [waiting.popleft() for _ in range(count)]


def _emptied(session: Session, cache: Cache, rows: int) -> Cache:
    """Return an empty cache of so many rows: the same memory, where it can be reached from here."""
    if not cache.movable and rows != cache.batch:
        return session.start(rows, cache.max_len)
    cache.restart(rows)
    return cache


def _enter(session: Session, cache: Cache, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """Read prompts, the shorter padded on the left, into new rows of the cache; return logits [rows, V] after them."""
    rows, longest = len(prompts), max(map(len, prompts))
    ids, mask = np.zeros((rows, longest), np.int64), np.zeros((rows, longest), np.int64)  # any token pads: it is masked
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    into = session.start(rows, longest) if cache.length else cache
    logits = session.step(into, ids, mask, keep=1)[:, 0]
    if into is not cache:
        cache.join(into)
    return logits


def _tokens(logits: np.ndarray, draws: Draws | None, rows: Sequence[_Row]) -> list[int]:
    """Return a token for each row of logits [B, V]; the likeliest of finite ones, where there are no `draws`."""
    if draws is None:
        if len(logits) == 1:
            return [int(logits.argmax())]  # several times as fast as by rows
        likeliest: list[int] = logits.argmax(axis=1).tolist()
        return likeliest
    return [row.token if row.ended else draws.token(logits, at, next(row.numbers)) for at, row in enumerate(rows)]


def _without_ended(cache: Cache, active: list[_Row], moves: bool) -> list[_Row]:
    """Return the rows that go on, in the order of the cache. Where rows cannot leave, those that ended stay on."""
    if all(row.ended for row in active):
        return []
    if not cache.movable:
        return active
    left = [row for row in active if not row.ended]
    cache.keep([at for at, row in enumerate(active) if not row.ended])
    if moves and 4 * (cache.length - cache.counts.max()) > max(cache.length, 4 * _SPARE):
        cache.drop_padding()
    return left


def generate(
    session: Session,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
) -> Iterator[int]:
    """Yield token ids after `prompt` until an end token (not yielded), a stop string (its last token is), or the count.

    Raises as `continued`.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    pieces = continued(session, tokenizer, [prompt], max_new_tokens, sampling, stop)
    return (piece.token for piece in pieces if piece.token is not None)


def generate_batch(
    session: Session,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    draft: Draft | None = None,
) -> list[list[int]]:
    """Return the token ids after each of several prompts. Raises as `continued`."""
    found: list[list[int]] = [[] for _ in prompts]
    for piece in continued(session, tokenizer, prompts, max_new_tokens, sampling, stop, draft):
        if piece.token is not None:
            found[piece.row].append(piece.token)
    return found


def generate_text(
    session: Session, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, sampling: Sampling | None = None,
    stop: Sequence[str] = (), chat: bool = False, draft: Draft | None = None,
) -> Iterator[str]:  # fmt: skip
    """Yield pieces of text as they become certain; a stop string itself is not among them. Raises as `continued`."""
    ids = encode_prompt(tokenizer, prompt, chat)
    pieces = continued(session, tokenizer, [ids], max_new_tokens, sampling, stop, draft)
    return (piece.text for piece in pieces if piece.text)


def generate_texts(
    session: Session, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int,
    sampling: Sampling | None = None, stop: Sequence[str] = (), draft: Draft | None = None,
) -> list[str]:  # fmt: skip
    """Return what follows each of several prompts. Raises as `continued`."""
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    found = ["" for _ in prompts]
    for piece in continued(session, tokenizer, ids, max_new_tokens, sampling, stop, draft):
        found[piece.row] += piece.text
    return found
