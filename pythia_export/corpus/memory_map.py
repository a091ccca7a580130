"""Megatron's memory map of tokens, an .idx beside a .bin, on disk or on the hub: opened, and read by place.

The .idx, little-endian: magic ``MMIDIDX\\0\\0``, u64 version 1, u8 dtype (8 is uint16), u64 sequences, u64 documents,
int32 size of each sequence, int64 byte offset of each, int64 document boundaries.

That of Pythia's training has 146 million sequences: an index of 1.8 GB and, on the hub, 21 parts of 30 GB. What is
asked for is read by its place, a few kilobytes of the index and the sequences themselves, and nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import escape
from itertools import accumulate
from pathlib import Path

import numpy as np

from .. import hub
from ..base.errors import IntegrityError, SourceError
from ..base.git_lfs import refuse_pointer
from ..base.progress import Progress
from ..recipe import Text

MAGIC = b"MMIDIDX\x00\x00"
OLDER = b"TNTIDX\x00\x00"  # Megatron's format before the memory map
HEADER = struct.Struct("<9sQBQQ")
UINT16 = 8
DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", UINT16: "uint16"}
RUN = 1 << 22  # bytes that one request asks for, about a batch
GAP = 1 << 12  # bytes left out between two sequences that are read all the same, rather than by two requests
THREADS = 8
_NUMBERED = re.compile(r"-(\d+)-of-(\d+)\.bin$")

Span = tuple[int, int]  # first byte, and the one after the last


@dataclass(frozen=True)
class Stretch:
    """A file that is read by place: `read` gives the bytes of a span, all of them."""

    name: str
    size: int
    read: Callable[[int, int], bytes]


@dataclass(frozen=True)
class MemoryMap:
    """`source` is for people. `sequences` is their number, by the index."""

    source: str
    index: Stretch
    parts: list[Stretch]
    sequences: int

    @property
    def data_size(self) -> int:
        """Bytes of all parts together."""
        return sum(part.size for part in self.parts)

    @property
    def data_name(self) -> str:
        first, last = self.parts[0].name, self.parts[-1].name
        return first if len(self.parts) == 1 else f"{first} ... {last}"

    def places(self, numbers: np.ndarray, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of these sequences and the byte that each begins at: int32 [N], int64 [N]."""
        sizes_at, offsets_at = HEADER.size, HEADER.size + 4 * self.sequences
        of_sizes = [(sizes_at + 4 * i, sizes_at + 4 * i + 4) for i in numbers.tolist()]
        of_offsets = [(offsets_at + 8 * i, offsets_at + 8 * i + 8) for i in numbers.tolist()]
        read = b"".join(read_spans([self.index], of_sizes + of_offsets, f"Reading {self.index.name}", progress))
        return np.frombuffer(read[: 4 * len(numbers)], "<i4"), np.frombuffer(read[4 * len(numbers) :], "<i8")


def open_map(section: Text, progress: Progress) -> MemoryMap:
    """Find the index and the data, and check the index's header.

    Raises:
        SourceError: a file is missing.
        IntegrityError: the index is another kind of file, or cut short.
    """
    source, index, parts = _local(section.path) if section.path is not None else _on_hub(section, progress)
    return MemoryMap(source, index, parts, _sequences(index))


def _local(path: Path) -> tuple[str, Stretch, list[Stretch]]:
    prefix = _prefix(path)
    index, whole = prefix.with_name(f"{prefix.name}.idx"), prefix.with_name(f"{prefix.name}.bin")
    files = [whole] if whole.is_file() else sorted(prefix.parent.glob(f"{escape(prefix.name)}-*-of-*.bin"))
    if not index.is_file() or not files:
        missing = whole if index.is_file() else index
        raise SourceError(
            f"{missing}: no such file; the training order is an .idx beside a .bin, whole or in numbered parts",
            hint="`path` names either, from the recipe's own folder; without it the hub's is read.",
        )
    _require_all_parts([p.name for p in files], str(prefix.parent))

    def opened(file: Path) -> Stretch:
        def read(start: int, end: int) -> bytes:
            with file.open("rb") as f:
                f.seek(start)
                data = f.read(end - start)
            if len(data) < end - start:
                raise IntegrityError(f"{file}: ends after {start + len(data):,} bytes. The file changed")
            return data

        return Stretch(str(file), file.stat().st_size, read)

    return path.name, opened(index), [opened(file) for file in files]


def _prefix(path: Path) -> Path:
    """Return what the names of index and data begin with: `path` is a file of them, that beginning, or their folder."""
    if path.is_dir():
        indices = sorted(path.glob("*.idx"))
        if len(indices) != 1:
            raise SourceError(
                f"{path}: {len(indices)} .idx files; the training order is one, beside its .bin",
                hint="Name it by `path`.",
            )
        path = indices[0]
    return path.with_name(_NUMBERED.sub("", path.name).removesuffix(".idx").removesuffix(".bin"))


def _on_hub(section: Text, progress: Progress) -> tuple[str, Stretch, list[Stretch]]:
    assert section.dataset is not None  # the schema sees to it
    repo, _, revision = section.dataset.partition("@")
    listing = hub.list_revision(repo, revision or "main", "dataset", progress)
    indices = [name for name in listing.files if name.endswith(".idx")]
    parts = sorted(name for name in listing.files if name.endswith(".bin"))
    if len(indices) != 1 or not parts:
        raise SourceError(
            f"data set {listing}: {len(indices)} .idx and {len(parts)} .bin; one index and its data were expected",
            hint="EleutherAI/pile-standard-pythia-preshuffled and its deduped sibling are such data sets.",
        )
    _require_all_parts(parts, str(listing))

    def part(name: str) -> Stretch:
        size = listing.files[name].size
        if size is None:
            raise SourceError(f"{listing}: the size of {name} is not known, so parts of it cannot be read")
        return Stretch(f"{repo}/{name}", size, lambda start, end: hub.read_range(listing, name, start, end, progress))

    return f"{repo} at {listing.commit[:12]}", part(indices[0]), [part(name) for name in parts]


def _require_all_parts(names: list[str], where: str) -> None:
    """Numbered from 0 without a gap. The hub's 21 parts call themselves 0 to 20 "of 20"."""
    numbered = [match for name in names if (match := _NUMBERED.search(name))]
    if not numbered and len(names) == 1:
        return
    found = [int(match[1]) for match in numbered]
    expected = int(numbered[0][2]) if numbered else 0
    if len(numbered) < len(names) or found != list(range(len(found))) or len(found) not in (expected, expected + 1):
        raise SourceError(f"{where}: parts {', '.join(names)}; they do not follow one another from 0 to {expected}")


def _sequences(index: Stretch) -> int:
    if index.size < HEADER.size:
        raise IntegrityError(f"{index.name}: {index.size} bytes; the header alone has {HEADER.size}")
    head = index.read(0, HEADER.size)
    refuse_pointer(head, index.name)
    magic, version, dtype, n, documents = HEADER.unpack(head)
    if magic != MAGIC or version != 1:
        raise IntegrityError(
            f"{index.name}: magic {magic!r}, version {version}; {MAGIC!r} and 1 expected",
            hint="An index of Megatron's older format: build a memory map (mmap) of it."
            if magic.startswith(OLDER)
            else "",
        )
    if dtype != UINT16:
        raise IntegrityError(
            f"{index.name}: tokens of dtype {dtype} ({DTYPES.get(dtype, 'unknown')}); {UINT16} (uint16) expected, "
            "as Pythia's training data has"
        )
    if index.size < HEADER.size + 12 * n + 8 * documents:
        raise IntegrityError(
            f"{index.name}: {index.size} bytes are too few for its {n} sequences and {documents} document boundaries",
            hint="Was it copied or fetched whole?",
        )
    return int(n)


def read_spans(parts: Sequence[Stretch], spans: list[Span], title: str, progress: Progress) -> list[bytes]:
    """The bytes of each span of what the parts are together, in the order of the spans; near ones by one request."""
    runs = _runs(spans)
    total = sum(end - begin for begin, end in runs)
    found: dict[Span, bytes] = {}
    with progress.track(title, total, "bytes") as advance, ThreadPoolExecutor(THREADS) as pool:
        try:
            for run, data in zip(runs, pool.map(lambda r: _read_run(parts, *r), runs), strict=True):
                found[run] = data
                advance(len(data))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    starts = np.array([begin for begin, _ in runs])
    out = []
    for begin, end in spans:
        run = runs[int(np.searchsorted(starts, begin, "right")) - 1]
        out.append(found[run][begin - run[0] : end - run[0]])
    return out


def _runs(spans: Iterable[Span]) -> list[Span]:
    runs: list[Span] = []
    for begin, end in sorted(set(spans)):
        if runs and begin - runs[-1][1] <= GAP and end - runs[-1][0] <= RUN:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        else:
            runs.append((begin, end))
    return runs


def _read_run(parts: Sequence[Stretch], begin: int, end: int) -> bytes:
    """Across the ends of parts where need be."""
    stops = list(accumulate(part.size for part in parts))
    pieces = []
    for part, stop in zip(parts, stops, strict=True):
        start = stop - part.size
        if begin < stop and end > start:
            pieces.append(part.read(max(begin, start) - start, min(end, stop) - start))
    return b"".join(pieces)
