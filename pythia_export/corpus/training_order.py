"""Pythia's training data in training order: a memory map of sequences of 2,049 tokens.

Batch i of the training is sequences 1024 i to 1024 (i + 1), so a checkpoint at step s has seen batches 0 to s.
"""

from __future__ import annotations

import numpy as np

from ..base.errors import IntegrityError, SourceError
from ..base.progress import SILENT, Progress
from ..recipe import BATCH, Text
from .memory_map import MemoryMap, open_map, read_spans

FRONT = 4096  # sequences whose sizes tell a map of documents from a damaged one


def read_training_order(section: Text, count: int, progress: Progress = SILENT) -> tuple[str, np.ndarray]:
    """A line for people, and the first `sequence_length` tokens of `count` different sequences, [count, length] int64.

    All of `section.batches` in their order where `count` is as many; fewer are drawn by the seed, and stay in order.

    Raises:
        SourceError: a file is missing, it is a map of documents, or there are fewer or shorter sequences than asked.
        IntegrityError: not such an index, or data that is not what its index says.
    """
    order = open_map(section, progress)
    if order.sequences % BATCH:
        progress.note(
            f"{order.index.name}: {order.sequences:,} sequences are {order.sequences // BATCH:,} batches of {BATCH:,} "
            f"and {order.sequences % BATCH} sequences more; Pythia's order is whole batches"
        )
    chosen = _chosen(order.index.name, order.sequences, section, count)
    size = _even_size(order, chosen, progress)
    length = section.sequence_length
    if size < length:
        raise SourceError(
            f"{order.index.name}: a sequence has {size} tokens; {length} were asked for",
            hint="Lower `sequence_length` in the recipe.",
        )
    begins = (2 * size * chosen).tolist()
    data = read_spans(order.parts, [(b, b + 2 * length) for b in begins], f"Reading {order.source}", progress)
    batches = f", batches {section.batches}" if section.batches else ""
    return f"{order.source}, training order{batches}", np.stack([np.frombuffer(d, "<u2") for d in data]).astype(
        np.int64
    )


def _chosen(name: str, n: int, section: Text, count: int) -> np.ndarray:
    """Numbers of the sequences, rising."""
    first, last, asked = 0, n, "sequences"
    if section.batch_range is not None:
        begin, end = section.batch_range
        first, last, asked = BATCH * begin, BATCH * end, f"sequences of batches {section.batches}"
        if last > n:
            raise SourceError(
                f"{name}: {n:,} sequences are batches 0:{n // BATCH}; {section.batches} were asked for",
                hint="Pythia was trained on batches 0:143000; a checkpoint at step s has seen 0:s.",
            )
    if last - first < count:
        raise SourceError(f"{name}: {last - first:,} {asked}; {count:,} were asked for", hint="Ask for fewer.")
    return first + np.sort(np.random.default_rng(section.seed).choice(last - first, count, replace=False))


def _even_size(order: MemoryMap, chosen: np.ndarray, progress: Progress) -> int:
    """Return how many tokens every sequence has.

    Of a whole index of 1.8 GB the sizes of `chosen` are read. Where all sequences before them have as many tokens, they
    begin at a multiple of it, and where all have, the data is as long as that makes it.
    """
    sizes, begins = order.places(chosen, progress)
    size, total = int(sizes[0]), order.data_size
    even = size > 0 and (sizes == size).all()
    if even and (begins == 2 * size * chosen).all() and total == 2 * size * order.sequences:
        return size
    front, _ = order.places(np.arange(min(FRONT, order.sequences)), progress)
    some = np.concatenate([front, sizes])
    if (some != size).any():
        raise SourceError(
            f"{order.index.name}: sequences of {some.min():,} to {some.max():,} tokens: a memory map of documents, "
            "which GPT-NeoX shuffles and cuts as it trains; a training order's have one length (2,049).",
            hint="EleutherAI/pile-standard-pythia-preshuffled and pile-deduped-pythia-preshuffled are training orders.",
        )
    if begins.min() < 0 or begins.max() + 2 * size > total:
        said = f"the index points to {int(begins.min()):,} .. {int(begins.max()) + 2 * size:,}"
    else:
        said = (
            f"{order.sequences:,} sequences of {size:,} tokens, one after another, are {2 * size * order.sequences:,}"
        )
    raise IntegrityError(
        f"{order.data_name}: {total:,} bytes; {said}",
        hint=f"Was it copied or fetched whole, and does it belong to {order.index.name}?",
    )
