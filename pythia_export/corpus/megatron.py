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
            raise SourceError(f"{file}: no such file; a preshuffled corpus is an .idx beside a .bin")
    raw = index.read_bytes()
    if len(raw) < HEADER.size:
        raise IntegrityError(f"{index}: {len(raw)} bytes; the header alone has {HEADER.size}")
    magic, version, dtype, n, _ = HEADER.unpack_from(raw)
    if magic != MAGIC or version != 1 or dtype != UINT16:
        raise IntegrityError(f"{index}: magic {magic!r}, version {version}, dtype {dtype}; {MAGIC!r}, 1 and 8 expected")
    if len(raw) < HEADER.size + 12 * n:
        raise IntegrityError(f"{index}: {len(raw)} bytes are too few for its {n} sequences")
    sizes = np.frombuffer(raw, "<i4", n, HEADER.size)
    offsets = np.frombuffer(raw, "<i8", n, HEADER.size + 4 * n)
    if n < count:
        raise SourceError(f"{index}: {n:,} sequences; {count:,} were asked for")
    chosen = np.sort(np.random.default_rng(seed).choice(n, count, replace=False))
    if (sizes[chosen] < length).any():
        raise SourceError(f"{index}: a sequence has {sizes[chosen].min()} tokens; {length} were asked for")
    end = int((offsets[chosen] + 2 * length).max())
    if offsets.min() < 0 or data.stat().st_size < end:
        raise IntegrityError(f"{data}: {data.stat().st_size:,} bytes; its index points to {end:,}")
    tokens = np.memmap(data, np.uint8, mode="r")
    return np.stack([tokens[o : o + 2 * length].view("<u2") for o in offsets[chosen]]).astype(np.int64)
