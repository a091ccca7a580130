"""Text as the quantiser and the proof read it: token windows [N, S], with a hash.

Documents come in an order that the seed alone decides, each is followed by the end-of-text token unless the recipe
leaves it out, and the stream is cut into windows. What cannot be had in full is an error that counts what there is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from ..base.errors import SourceError
from ..base.progress import SILENT, Progress
from ..model.neox import NeoXConfig
from ..recipe import Calibration, Text, Verify
from .packing import pack
from .rows import Document
from .sources import Source, documents_of
from .stdlib import Split, stdlib_documents
from .training_order import read_training_order
from .wikitext import read_wikitext


@dataclass(frozen=True)
class Subset:
    documents: list[int]
    n_bytes: int


@dataclass(frozen=True)
class Windows:
    """ids: [N, S] int64. documents: [N, S] int64, of each token the document, counted from 0; its end-of-text token
    belongs to it. n_bytes: UTF-8 bytes of the text that the N * S tokens stand for, end-of-text tokens counting none.
    sha256: of shape and ids, little-endian. subsets: of each part of the Pile that a document names, its documents and
    its bytes; empty where none does. end_tokens: how many of the tokens are the model's end-of-text token, None where
    they were not counted."""

    ids: np.ndarray
    documents: np.ndarray
    source: str
    sha256: str
    n_bytes: int
    subsets: dict[str, Subset]
    end_tokens: int | None = None

    @classmethod
    def of(
        cls, ids: np.ndarray, documents: np.ndarray, source: str, n_bytes: int, subsets: dict[str, Subset],
        end_tokens: int | None = None,
    ) -> Windows:  # fmt: skip
        """With its hash; the arrays cannot be written to from then on."""
        for array in (ids, documents):
            array.setflags(write=False)
        digest = hashlib.sha256(np.array(ids.shape, "<i8").tobytes() + ids.astype("<i8").tobytes()).hexdigest()
        return cls(ids, documents, source, digest, n_bytes, subsets, end_tokens)


def calibration_windows(
    section: Calibration, tokenizer: Tokenizer, config: NeoXConfig, progress: Progress = SILENT
) -> Windows:
    """`section.samples` windows; of `python-stdlib`, from the modules that checkpoints were trained on; of `wikitext2`,
    from its train split."""
    return _windows(section, section.samples, "train", tokenizer, config, progress)


def verify_windows(section: Verify, tokenizer: Tokenizer, config: NeoXConfig, progress: Progress = SILENT) -> Windows:
    """Windows of `section.tokens` tokens, rounded up; of `python-stdlib`, from the modules that were held out; of
    `wikitext2`, from its test split."""
    return _windows(section, -(-section.tokens // section.sequence_length), "heldout", tokenizer, config, progress)


def _windows(
    section: Text, count: int, split: Split, tokenizer: Tokenizer, config: NeoXConfig, progress: Progress
) -> Windows:
    """Raises:
    SourceError: less text than asked, text of another tokenizer, windows longer than the model's context.
    """
    length = section.sequence_length
    if length > config.max_positions:
        raise SourceError(
            f"sequence_length is {length}; this model's context is {config.max_positions}",
            hint="Lower `sequence_length` in the recipe.",
        )
    names: list[str | None] = []
    if section.source == "training-order":
        source, ids = read_training_order(section, count, progress)
        documents = np.repeat(np.arange(count)[:, None], length, 1)
    elif section.source == "wikitext2":
        part: Literal["train", "test"] = "train" if split == "train" else "test"
        source, ids, documents = read_wikitext(section, part, count, tokenizer, progress)
    else:
        texts = _texts(section, split, progress)
        ids, documents, names = pack(texts, section, count, tokenizer, config, progress)
        source, tally = texts.read_from(), texts.tally
        if tally.empty:
            progress.note(f"{source}: {tally.empty:,} of {tally.rows:,} rows have no text (null or empty): left out")
    if ids.max() >= config.vocab_size:
        raise SourceError(
            f"{source}: token {ids.max()}; the model's vocabulary is {config.vocab_size}",
            hint="Does the tokenizer belong to this model?",
        )
    # As one stream, since a window may end inside a character; special tokens decode to nothing.
    n_bytes = len(tokenizer.decode(ids.ravel().tolist()).encode())
    end = config.eos_token_id or 0  # 0 is what Pythia was trained with, where a fine-tune names none
    end_tokens = int((ids == end).sum())
    if section.source == "training-order":
        progress.note(_end_tokens_of_training(source, ids.size, end_tokens, end))
    return Windows.of(ids, documents, source, n_bytes, _subsets(ids, documents, names, tokenizer), end_tokens)


def _end_tokens_of_training(source: str, tokens: int, found: int, end: int) -> str:
    """Return what a reader of batches wants to know: whether documents were set apart as the model was trained."""
    if found:
        return f"{source}: {found:,} of {tokens:,} tokens are the end-of-text token (id {end})"
    return f"{source}: no end-of-text token (id {end}) among {tokens:,} tokens; documents are not set apart by one"


def _subsets(
    ids: np.ndarray, documents: np.ndarray, names: list[str | None], tokenizer: Tokenizer
) -> dict[str, Subset]:
    if not any(names):
        return {}
    ends = np.searchsorted(documents.ravel(), np.arange(len(names) + 1))  # documents follow one another
    texts = tokenizer.decode_batch([ids.ravel()[a:b].tolist() for a, b in pairwise(ends)])
    found: dict[str, Subset] = {}
    for name in sorted({name for name in names if name}):
        own = [i for i, of in enumerate(names) if of == name]
        found[name] = Subset(own, sum(len(texts[i].encode()) for i in own))
    return found


def _texts(section: Text, split: Split, progress: Progress) -> Source:
    if section.source == "python-stdlib":
        documents = [text for _, text in stdlib_documents(split)]
        order = np.random.default_rng(section.seed).permutation(len(documents))
        return Source(f"Python's standard library, {split}", (Document(documents[i]) for i in order))
    return documents_of(section, progress)
