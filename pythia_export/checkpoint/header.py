"""The header of a safetensors file, read with suspicion: what it claims is held to the file before anything is used.

A file is eight bytes with the header's length (little-endian), a JSON object of name -> {dtype, shape, data_offsets},
then the tensors' bytes, back to back. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul
from pathlib import Path
from typing import Any

from ..base.errors import IntegrityError
from ..base.strict_json import parse_json, shown

LONGEST = 100_000_000  # bytes of a header, as the format's own library allows
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_HINT = "Fetch or copy the file again."


@dataclass(frozen=True)
class Entry:
    """One tensor: `dtype` as the header spells it, `offset` from the file's start, both in bytes with `nbytes`."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, Entry]:
    """Name -> entry; no byte of a tensor is read.

    Raises:
        IntegrityError: truncated, not JSON, a name twice, an unknown dtype, a range that is not its shape's; ranges
            that overlap, leave gaps or do not fill the file.
    """
    size = path.stat().st_size
    with path.open("rb") as f:
        prefix = f.read(8)
        if len(prefix) < 8:
            raise IntegrityError(f"{path}: {size} bytes, which is not even a header. The file is truncated", hint=_HINT)
        length = struct.unpack("<Q", prefix)[0]
        if 8 + length > size:
            raise IntegrityError(
                f"{path}: {size} bytes; its header alone claims {length}. The file is truncated or no safetensors",
                hint=_HINT,
            )
        if length > LONGEST:
            raise IntegrityError(f"{path}: a header of {length:,} bytes; {LONGEST:,} are the most")
        raw = f.read(length)
    entries = parse_header(raw, path, size)
    _require_filled(path, entries, 8 + length, size)
    return entries


def parse_header(raw: bytes, path: Path | str, size: int | None = None) -> dict[str, Entry]:
    """Return the entries that a header's JSON describes; raises as `read_header`. `path` is for messages, `size` the
    file's where it is known."""
    if not raw.startswith(b"{"):  # the format says so; a byte order mark, which JSON elsewhere may have, is none
        raise IntegrityError(
            f"{path}, its header: not JSON: begins with {raw[:8]!r}; {b'{'!r} was expected", hint=_HINT
        )
    header = parse_json(raw, f"{path}, its header", hint=_HINT)
    if not isinstance(header, dict):
        raise IntegrityError(f"{path}: its header is {shown(header)}; an object was expected", hint=_HINT)
    header.pop("__metadata__", None)
    return {name: _entry(path, name, value, 8 + len(raw), size) for name, value in header.items()}


def _entry(path: Path | str, name: str, value: Any, start: int, size: int | None) -> Entry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (KeyError, TypeError, ValueError) as e:
        raise IntegrityError(f"{path}: {shown(name)} has no dtype, shape and data_offsets", hint=_HINT) from e
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise IntegrityError(f"{path}: {name} is of dtype {shown(dtype)}, which safetensors does not have", hint=_HINT)
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, begin, end)) or not _countable(shape):
        raise IntegrityError(
            f"{path}: {name} has shape {_spelt(shape)} and offsets {shown(begin)} to {shown(end)}", hint=_HINT
        )
    nbytes = prod(shape) * _BYTES[dtype]
    if end - begin != nbytes:
        raise IntegrityError(
            f"{path}: {name} has {end - begin:,} bytes; {dtype} {list(shape)} has {nbytes:,}", hint=_HINT
        )
    if size is not None and start + end > size:
        raise IntegrityError(
            f"{path}: {name} ends at byte {start + end:,}, the file at {size:,}. The file is truncated", hint=_HINT
        )
    return Entry(dtype, shape, start + begin, nbytes)


def _spelt(shape: tuple[Any, ...]) -> str:
    return f"[{', '.join(map(shown, shape[:8]))}{', ...' if len(shape) > 8 else ''}]"


def _countable(shape: tuple[int, ...]) -> bool:
    """Whether 64 bits hold the product at every step, as other readers take it: a nought further on is too late."""
    return all(numbers < 1 << 60 for numbers in accumulate(shape, mul))


def _require_filled(path: Path, entries: dict[str, Entry], start: int, size: int) -> None:
    at, before = start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != at:
            wrong = "overlaps" if entry.offset < at else f"leaves {entry.offset - at:,} bytes free after"
            raise IntegrityError(f"{path}: {name} {wrong} {before}", hint=_HINT)
        at, before = entry.offset + entry.nbytes, name
    if at != size:
        raise IntegrityError(f"{path}: {size - at:,} bytes after {before} belong to no tensor", hint=_HINT)
