"""Whether a tokenizer and a model belong together, as far as their files can say; the rest only a text can."""

from __future__ import annotations

from ..model.neox import NeoXConfig
from ..tokenizer import TOKENIZER, FolderTokenizer


def misfits(tokenizer: FolderTokenizer, config: NeoXConfig) -> list[str]:
    """Return what is odd about the two, a sentence each: end tokens that differ, tokens that the model has no row for.

    None of it is an error: people add tokens before they widen a model, and a chat may end at a token of its own.
    """
    found, text = [], tokenizer.tokenizer
    size = max(text.get_vocab().values(), default=-1) + 1
    if size > config.vocab_size:
        beyond = text.id_to_token(size - 1)
        found.append(
            f"{tokenizer.folder}: {TOKENIZER} goes to id {size - 1:,} ({beyond!r}), the model to "
            f"{config.vocab_size - 1:,}: a text with a token beyond cannot be read"
        )
    special = {at for at, token in text.get_added_tokens_decoder().items() if token.special}
    for end in config.eos_token_ids:
        if end not in special:
            token = text.id_to_token(end)
            what = "no token" if token is None else f"{token!r}, no special token"
            found.append(f"{tokenizer.folder}: the model ends a text with id {end}, which is {what} of {TOKENIZER}")
    named = tokenizer.id_of("eos_token")
    if named is not None and config.eos_token_ids and named not in config.eos_token_ids:
        ends = ", ".join(map(str, config.eos_token_ids))
        token = tokenizer.roles["eos_token"]
        found.append(
            f"{tokenizer.folder}: the tokenizer's end token is {token!r} (id {named}), the model's "
            f"{ends}: a text goes on past the first, as in transformers. Is it this model's tokenizer?"
        )
    return found
