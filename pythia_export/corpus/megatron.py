"""Pythia's training data in training order: Megatron's indexed memory map, an .idx beside a .bin.

The .idx, little-endian: magic ``MMIDIDX\\0\\0``, u64 version 1, u8 dtype (8 is uint16), u64 sequences, u64 documents,
int32 size of each sequence, int64 byte offset of each, int64 document boundaries. A sequence has 2,049 tokens; batch i
of the training is sequences 1024 i to 1024 (i + 1).
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from ..errors import IntegrityError, SourceError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
UINT16 = 8


def read_sequences(path: Path, count: int, length: int, seed: int) -> np.ndarray:
    """The first `length` tokens of `count` different sequences that the seed draws, [count, length] int64.

    Raises:
        SourceError: a file is missing, or there are fewer or shorter sequences than asked.
        IntegrityError: not such an index, or a .bin that is shorter than its index says.
    """
    index, data = path.with_suffix(".idx"), path.with_suffix(".bin")
    for file in (index, data):
        if not file.is_file():
            raise SourceError(
                f"{file}: no such file; a preshuffled corpus is an .idx beside a .bin",
                hint="The hub's data set keeps the .bin in parts: join them, in order, into one.",
            )
    with index.open("rb") as f:
        head, stored = f.read(HEADER.size), index.stat().st_size
    if len(head) < HEADER.size:
        raise IntegrityError(f"{index}: {stored} bytes; the header alone has {HEADER.size}")
    magic, version, dtype, n, _ = HEADER.unpack(head)
    if magic != MAGIC or version != 1 or dtype != UINT16:
        raise IntegrityError(f"{index}: magic {magic!r}, version {version}, dtype {dtype}; {MAGIC!r}, 1 and 8 expected")
    if stored < HEADER.size + 12 * n:
        raise IntegrityError(f"{index}: {stored} bytes are too few for its {n} sequences")
    if n < count:
        raise SourceError(f"{index}: {n:,} sequences; {count:,} were asked for", hint="Ask for fewer.")
    chosen = np.sort(np.random.default_rng(seed).choice(n, count, replace=False))
    # The whole order has 146 million sequences and an index of 1.8 GB: it is mapped, and only the chosen are touched.
    mapped = np.memmap(index, np.uint8, mode="r")
    sizes = mapped[HEADER.size :][: 4 * n].view("<i4")[chosen]
    offsets = mapped[HEADER.size + 4 * n :][: 8 * n].view("<i8")[chosen]
    if sizes.min() < length:
        raise SourceError(
            f"{index}: a sequence has {sizes.min()} tokens; {length} were asked for",
            hint="Lower `sequence_length` in the recipe.",
        )
    end = int(offsets.max()) + 2 * length
    if offsets.min() < 0 or data.stat().st_size < end:
        raise IntegrityError(
            f"{data}: {data.stat().st_size:,} bytes; its index points to {int(offsets.min()):,} .. {end:,}",
            hint="Was it copied or unsharded whole?",
        )
    tokens = np.memmap(data, np.uint8, mode="r")
    return np.stack([tokens[o : o + 2 * length].view("<u2") for o in offsets]).astype(np.int64)
