"""Text as the quantiser and the proof read it: token windows [N, S], with a hash.

Documents come in an order that the seed alone decides, each is followed by the end-of-text token, and the stream is cut
into windows. What cannot be had in full is an error that counts what there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from ..errors import SourceError
from ..neox import NeoXConfig
from ..progress import SILENT, Progress
from ..recipe import Calibration, Text, Verify
from .megatron import read_sequences
from .sources import documents_of
from .stdlib import Split, stdlib_documents


@dataclass(frozen=True)
class Windows:
    """ids: [N, S] int64. documents: [N], of the document in which a window starts. n_bytes: UTF-8 bytes of the text
    that the N * S tokens stand for, end-of-text tokens counting none. sha256: of shape and ids, little-endian."""

    ids: np.ndarray
    documents: np.ndarray
    source: str
    sha256: str
    n_bytes: int


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
        documents, source = np.arange(count), f"{section.path.name}, training order"
    else:
        source, texts = _texts(section, split)
        ids, documents = _pack(texts, source, count, length, tokenizer, config, progress)
    if ids.max() >= config.vocab_size:
        raise SourceError(
            f"{source}: token {ids.max()}; the model's vocabulary is {config.vocab_size}",
            hint="Does the tokenizer belong to this model?",
        )
    ids.setflags(write=False)
    digest = hashlib.sha256(np.array(ids.shape, "<i8").tobytes() + ids.astype("<i8").tobytes()).hexdigest()
    # As one stream, since a window may end inside a character; special tokens decode to nothing.
    n_bytes = len(tokenizer.decode(ids.ravel().tolist()).encode())
    return Windows(ids, documents, source, digest, n_bytes)


def _texts(section: Text, split: Split) -> tuple[str, Iterator[str]]:
    if section.source == "python-stdlib":
        documents = [text for _, text in stdlib_documents(split)]
        order = np.random.default_rng(section.seed).permutation(len(documents))
        return f"Python's standard library, {split}", (documents[i] for i in order)
    return documents_of(section)


def _pack(
    texts: Iterator[str],
    source: str,
    count: int,
    length: int,
    tokenizer: Tokenizer,
    config: NeoXConfig,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Documents until there is enough: ids [count, length] int64, and the document in which each window starts."""
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        # Some tokenizer.json carry the settings of a training run; documents are neither cut nor padded here.
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
    wanted = count * length
    stream: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    have, n = 0, 0
    with progress.track(f"Tokenising {source}", wanted, "tokens") as advance:
        for text in texts:
            ids = [*tokenizer.encode(text, add_special_tokens=False).ids, config.eos_token_id]
            if len(ids) == 1:
                continue
            advance(min(len(ids), wanted - have))
            stream.append(np.array(ids, np.int64))
            owners.append(np.full(len(ids), n))
            have, n = have + len(ids), n + 1
            if have >= wanted:
                break
    if have < wanted:
        raise SourceError(
            f"{source}: {have:,} tokens in {n:,} documents; {count:,} windows of {length:,} need {wanted:,} tokens",
            hint="Give more text, or ask for fewer samples or a shorter sequence_length.",
        )
    packed = np.concatenate(stream)[:wanted].reshape(count, length)
    return packed, np.concatenate(owners)[:wanted:length]
