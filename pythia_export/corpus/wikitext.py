"""WikiText-2 as the literature of GPTQ reads it, so that perplexities compare.

The rows of the raw text, blank ones included, are joined by two newlines and tokenised as one string without any
end-of-text token. Evaluation cuts the test split into windows from its start and leaves out the rest; calibration draws
windows of the train split at random (https://github.com/IST-DASLab/gptq, datautils.py). For Pythia's tokenizer the test
split has 288,730 tokens, 140 windows of 2,048.
"""

from __future__ import annotations

import io
import re
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from ..base.errors import IntegrityError, SourceError
from ..base.git_lfs import refuse_pointer
from ..base.progress import SILENT, Progress
from ..recipe import Text
from .compression import FAULTS, decompressed
from .find import Opened, find_file
from .formats import kind_of, read_documents

DATASET = "Salesforce/wikitext"
FILES = {split: f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet" for split in ("train", "test")}
_HEADING = re.compile(r"^ = [^=].* = \n?$")


def read_wikitext(
    section: Text, split: Literal["train", "test"], count: int, tokenizer: Tokenizer, progress: Progress = SILENT
) -> tuple[str, np.ndarray, np.ndarray]:
    """A line for people that names the source, ids [count, length] int64, and the article of each token, alike.

    Raises:
        SourceError: fewer tokens than asked, or the file cannot be had.
    """
    file = find_file(section, progress, DATASET, FILES[split])
    rows = _rows(file)
    starts = np.cumsum([0, *(len(row) + 2 for row in rows)])[:-1]  # characters, with the two newlines between
    articles = starts[[i for i, row in enumerate(rows) if _HEADING.match(row)]]
    with progress.track(f"Tokenising {file.source}", 1, "text") as advance:
        encoding = tokenizer.encode("\n\n".join(rows), add_special_tokens=False)
        advance(1)
    ids, length = np.array(encoding.ids, np.int64), section.sequence_length
    if split == "test":
        if count * length > len(ids):
            raise SourceError(
                f"{file.source}: {len(ids):,} tokens make {len(ids) // length:,} windows of {length:,}; {count:,} were "
                "asked for",
                hint=f"tokens = {len(ids) // length * length} takes all of them.",
            )
        begin = np.arange(count) * length
    else:
        if length >= len(ids):
            raise SourceError(f"{file.source}: {len(ids):,} tokens; a window has {length:,}")
        begin = np.random.default_rng(section.seed).integers(0, len(ids) - length, count)
    taken = begin[:, None] + np.arange(length)
    at = np.array([start for start, _ in encoding.offsets])[taken]
    return f"{file.source}, WikiText-2 as GPTQ reads it", ids[taken], _article(articles, at)


def _article(starts: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Number of the article at each character; blank rows before the first belong to it."""
    return np.maximum(np.searchsorted(starts, at, "right") - 1, 0)


def _rows(file: Opened) -> list[str]:
    if kind_of(file.name) == "parquet":
        return [row.text for row in read_documents(file.name, file.open, file.source)]
    try:
        with file.open() as raw:
            stream = decompressed(raw, file.source)
            refuse_pointer(stream.peek(64), file.source)
            lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="\n").readlines()
    except (*FAULTS, ValueError) as e:  # UnicodeDecodeError is a ValueError
        raise IntegrityError(f"{file.source}: cannot be read to its end: {e}", hint="Fetch or copy it again.") from e
    # Canonical rows end in a newline alone, whatever an editor made of the file.
    return [line.replace("\r\n", "\n") if line.strip() else "" for line in lines]
