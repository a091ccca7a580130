"""The generation loop, and text out of tokens while they come.

A byte-level token may end in the middle of a UTF-8 character, and a stop string may begin in one token and end three
later. `StreamDecoder` therefore holds back exactly the bytes that could still become something else.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer, decoders

from ..base.errors import RecipeError, SourceError
from .sampling import Sampling, choose
from .session import Session


class StreamDecoder:
    """Decode token by token: `push` returns the text that has become certain, `finish` what is left.

    Special tokens decode to nothing. The pieces, joined, are the tokenizer's own decoding, cut before the `stop` string
    that is complete first, or the longest of those; from then on `stopped` is True and `push` returns nothing. A plain
    str is one stop string.

    Raises:
        SourceError: the tokenizer is not byte-level, as every Pythia tokenizer is.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if not isinstance(tokenizer.decoder, decoders.ByteLevel):
            kind = type(tokenizer.decoder).__name__
            raise SourceError(f"tokenizer.json: decoder {kind}; every Pythia tokenizer is ByteLevel")
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)  # a str is a sequence of its letters, too
        if not all(self._stop):
            raise RecipeError("an empty stop string, which would stop before the first token")
        self.stopped = False
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # decoded, but perhaps the beginning of a stop string

    def push(self, token: int) -> str:
        return self._release(self._utf8.decode(self._bytes_of(token)), final=False)

    def finish(self) -> str:
        """The rest: a stop string that was only begun, and U+FFFD for half a character."""
        return self._release(self._utf8.decode(b"", final=True), final=True)

    def _bytes_of(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None and added.special:
            return b""
        text = self._tokenizer.id_to_token(token)
        if text is None:  # the model's vocabulary is padded beyond the tokenizer's
            return b""
        try:
            return bytes(_BYTE_OF[character] for character in text)
        except KeyError:  # an added token is stored as plain text
            return str(text).encode()

    def _release(self, new: str, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


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

    Raises:
        RecipeError: an empty prompt, a sampling value out of range, or more tokens than the model has positions.
            On the call itself, not on the first `next`.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    steps = generate_batch(session, tokenizer, [prompt], max_new_tokens, sampling, stop)
    return (row[0] for row in steps if row[0] is not None)


def generate_batch(
    session: Session,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
) -> Iterator[list[int | None]]:
    """Several prompts at once, the shorter padded on the left. Yields one list a step: a token id a prompt, None
    once that prompt has ended. Raises as `generate` does."""
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
    texts = [StreamDecoder(tokenizer, stop) for _ in prompts]
    return _steps(session, prompts, max_new_tokens, sampling, texts)


def _steps(
    session: Session,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    texts: Sequence[StreamDecoder],
) -> Iterator[list[int | None]]:
    ends = session.config.eos_token_ids
    rows, longest = len(prompts), max(map(len, prompts))
    ids, mask = np.zeros((rows, longest), np.int64), np.zeros((rows, longest), np.int64)  # any token pads: it is masked
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    generators = sampling.generators(rows)
    cache = session.start(rows, longest + max_new_tokens)
    ended = [False] * rows
    logits = session.step(cache, ids, mask, keep=1)[:, 0]  # [B, V]
    for left in reversed(range(max_new_tokens)):
        tokens: list[int | None] = [None] * rows
        for row in range(rows):
            if ended[row]:
                continue
            token = choose(logits[row], sampling, generators[row])
            if token in ends:
                ended[row] = True
                continue
            tokens[row] = token
            texts[row].push(token)
            ended[row] = texts[row].stopped
        if any(token is not None for token in tokens):
            yield tokens
        if left == 0 or all(ended):
            return
        fed = np.array([[0 if token is None else token] for token in tokens], np.int64)
        logits = session.step(cache, fed)[:, -1]


def encode_prompt(tokenizer: Tokenizer, prompt: str, chat: bool = False) -> list[int]:
    """Token ids; RecipeError where bytes that were no UTF-8 became lone surrogates on the way here.

    A `chat` has its special tokens already: the tokenizer puts none around it.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as e:
        raise RecipeError(
            f"the prompt is not UTF-8: character {e.start + 1:,} of it is none", hint="Convert it: iconv -t UTF-8."
        ) from None
    return list(tokenizer.encode(prompt, add_special_tokens=not chat).ids)


def generate_text(
    session: Session, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, sampling: Sampling | None = None,
    stop: Sequence[str] = (), chat: bool = False,
) -> Iterator[str]:  # fmt: skip
    """Yield pieces of text as they become certain; a stop string itself is not among them. Raises as `generate`."""
    ids = encode_prompt(tokenizer, prompt, chat)
    steps = generate_batch(session, tokenizer, [ids], max_new_tokens, sampling, stop)
    return _texts(steps, StreamDecoder(tokenizer, stop))


def generate_texts(
    session: Session, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int,
    sampling: Sampling | None = None, stop: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """Return what follows each of several prompts, computed as one batch. Raises as `generate`."""
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    decoders, found = [StreamDecoder(tokenizer, stop) for _ in prompts], ["" for _ in prompts]
    for step in generate_batch(session, tokenizer, ids, max_new_tokens, sampling, stop):
        for row, token in enumerate(step):
            if token is not None:
                found[row] += decoders[row].push(token)
    return [text + decoder.finish() for text, decoder in zip(found, decoders, strict=True)]


def _texts(steps: Iterator[list[int | None]], decoder: StreamDecoder) -> Iterator[str]:
    for (token,) in steps:
        if token is not None and (piece := decoder.push(token)):
            yield piece
    if rest := decoder.finish():
        yield rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of every byte, which byte-level tokens are spelled in.

    https://github.com/openai/gpt-2/blob/9b63575/src/encoder.py, `bytes_to_unicode`: printable Latin-1 characters stand
    for themselves, the other bytes for the characters from U+0100 on, in order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
