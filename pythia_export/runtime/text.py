"""Text out of tokens while they come, and token ids out of a prompt.

A byte-level token may end in the middle of a UTF-8 character, and a stop string may begin in one token and end three
later. `StreamDecoder` therefore holds back exactly the bytes that could still become something else.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders

from ..base.errors import RecipeError, SourceError


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
        self._spelt: dict[int, bytes] = {}  # of the tokens so far
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # decoded, but perhaps the beginning of a stop string

    def push(self, token: int) -> str:
        """Return the text that this token has made certain."""
        spelt = self._spelt.get(token)
        if spelt is None:
            spelt = self._spelt[token] = self._bytes_of(token)
        text = self._utf8.decode(spelt)
        return self._release(text, final=False) if self._stop else text

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
            return bytes([_BYTE_OF[character] for character in text])
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
