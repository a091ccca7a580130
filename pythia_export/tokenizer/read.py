"""Read a tokenizer. Everything that reads one reads it here."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from ..base.errors import IntegrityError, SourceError


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json, without the truncation and the padding that it may carry.

    tokenizers saves the settings of its last call in the file. transformers sets both anew in every call, so they never
    take effect there.

    Raises:
        SourceError: there is no such file.
        IntegrityError: it is not a tokenizer.
    """
    if not path.is_file():
        raise SourceError(f"{path.parent}: no {path.name}", hint="Copy it from the model's main revision.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # the binding raises bare Exception
        raise IntegrityError(f"{path}: not a tokenizer: {e}") from e
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
