"""Text as the quantiser and the proof read it: token windows [N, S], with a hash.

Documents come in an order that the seed alone decides, each is followed by the end-of-text token, and the stream is cut
into windows. What cannot be had in full is an error that counts what there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer

from ..errors import SourceError
from ..neox import NeoXConfig
from ..progress import SILENT, Progress
from ..recipe import Calibration, Text, Verify
from .megatron import read_sequences
from .sources import Document, documents_of
from .stdlib import Split, stdlib_documents


@dataclass(frozen=True)
class Subset:
    documents: list[int]
    n_bytes: int


@dataclass(frozen=True)
class Windows:
    """ids: [N, S] int64. documents: [N, S] int64, of each token the document, counted from 0; its end-of-text token
    belongs to it. n_bytes: UTF-8 bytes of the text that the N * S tokens stand for, end-of-text tokens counting none.
    sha256: of shape and ids, little-endian. subsets: of each part of the Pile that a document names, its documents and
    its bytes; empty where none does."""

    ids: np.ndarray
    documents: np.ndarray
    source: str
    sha256: str
    n_bytes: int
    subsets: dict[str, Subset]


def calibration_windows(
    section: Calibration, tokenizer: Tokenizer, config: NeoXConfig, progress: Progress = SILENT
) -> Windows:
    """`section.samples` windows; of `python-stdlib`, from the modules that checkpoints were trained on."""
    return _windows(section, section.samples, "train", tokenizer, config, progress)


def verify_windows(section: Verify, tokenizer: Tokenizer, config: NeoXConfig, progress: Progress = SILENT) -> Windows:
    """Windows of `section.tokens` tokens, rounded up; of `python-stdlib`, from the modules that were held out."""
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
    if section.source == "preshuffled":
        assert section.path is not None
        ids = read_sequences(section.path, count, length, section.seed)
        documents = np.repeat(np.arange(count)[:, None], length, 1)
        names: list[str | None] = [None] * count
        source = f"{section.path.name}, training order"
    else:
        source, texts = _texts(section, split)
        ids, documents, names = _pack(texts, source, count, length, tokenizer, config, progress)
    if ids.max() >= config.vocab_size:
        raise SourceError(
            f"{source}: token {ids.max()}; the model's vocabulary is {config.vocab_size}",
            hint="Does the tokenizer belong to this model?",
        )
    for array in (ids, documents):
        array.setflags(write=False)
    digest = hashlib.sha256(np.array(ids.shape, "<i8").tobytes() + ids.astype("<i8").tobytes()).hexdigest()
    # As one stream, since a window may end inside a character; special tokens decode to nothing.
    n_bytes = len(tokenizer.decode(ids.ravel().tolist()).encode())
    return Windows(ids, documents, source, digest, n_bytes, _subsets(ids, documents, names, tokenizer))


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


def _texts(section: Text, split: Split) -> tuple[str, Iterator[Document]]:
    if section.source == "python-stdlib":
        documents = [text for _, text in stdlib_documents(split)]
        order = np.random.default_rng(section.seed).permutation(len(documents))
        return f"Python's standard library, {split}", (Document(documents[i]) for i in order)
    return documents_of(section)


def _pack(
    texts: Iterator[Document],
    source: str,
    count: int,
    length: int,
    tokenizer: Tokenizer,
    config: NeoXConfig,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray, list[str | None]]:
    """Documents until there is enough: ids [count, length] int64, the document of each token, the subset of each."""
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        # Some tokenizer.json carry the settings of a training run; documents are neither cut nor padded here.
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
    wanted = count * length
    stream: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    names: list[str | None] = []
    have, n = 0, 0
    with progress.track(f"Tokenising {source}", wanted, "tokens") as advance:
        for text, subset in texts:
            ids = [*tokenizer.encode(text, add_special_tokens=False).ids, config.eos_token_id]
            if len(ids) == 1:
                continue
            advance(min(len(ids), wanted - have))
            stream.append(np.array(ids, np.int64))
            owners.append(np.full(len(ids), n))
            names.append(subset)
            have, n = have + len(ids), n + 1
            if have >= wanted:
                break
    if have < wanted:
        raise SourceError(
            f"{source}: {have:,} tokens in {n:,} documents; {count:,} windows of {length:,} need {wanted:,} tokens",
            hint="Give more text, or ask for fewer samples or a shorter sequence_length.",
        )
    packed, of = (np.concatenate(x)[:wanted].reshape(count, length) for x in (stream, owners))
    return packed, of, names
