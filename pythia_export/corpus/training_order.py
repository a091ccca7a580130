"""Pythia's training data in training order: Megatron's memory map, an .idx beside a .bin, on disk or on the hub.

The .idx, little-endian: magic ``MMIDIDX\\0\\0``, u64 version 1, u8 dtype (8 is uint16), u64 sequences, u64 documents,
int32 size of each sequence, int64 byte offset of each, int64 document boundaries. A sequence has 2,049 tokens; batch i
of the training is sequences 1024 i to 1024 (i + 1), so a checkpoint at step s has seen batches 0 to s.

The whole order has 146 million sequences: an index of 1.8 GB and, on the hub, 21 parts of 30 GB. What is asked for is
read by its place, a few kilobytes of the index and the sequences themselves, and nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from .. import hub
from ..errors import IntegrityError, SourceError
from ..progress import SILENT, Progress
from ..recipe import BATCH, Text

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
UINT16 = 8
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


def read_training_order(section: Text, count: int, progress: Progress = SILENT) -> tuple[str, np.ndarray]:
    """A line for people, and the first `sequence_length` tokens of `count` different sequences, [count, length] int64.

    All of `section.batches` in their order where `count` is as many; fewer are drawn by the seed, and stay in order.

    Raises:
        SourceError: a file is missing, or there are fewer or shorter sequences than asked.
        IntegrityError: not such an index, or data that is shorter than its index says.
    """
    source, index, parts = _local(section.path) if section.path is not None else _on_hub(section, progress)
    n = _sequences(index)
    chosen = _chosen(index.name, n, section, count)
    begins, ends = _tokens(index, n, chosen, section.sequence_length, progress)
    total = sum(part.size for part in parts)
    if begins.min() < 0 or ends.max() > total:
        named = parts[0].name if len(parts) == 1 else f"{parts[0].name} ... {parts[-1].name}"
        raise IntegrityError(
            f"{named}: {total:,} bytes; the index points to {int(begins.min()):,} .. {int(ends.max()):,}",
            hint="Was it copied or fetched whole?",
        )
    spans = list(zip(begins.tolist(), ends.tolist(), strict=True))
    data = _read(parts, spans, f"Reading {source}", progress)
    batches = f", batches {section.batches}" if section.batches else ""
    return f"{source}, training order{batches}", np.stack([np.frombuffer(d, "<u2") for d in data]).astype(np.int64)


def _local(path: Path) -> tuple[str, Stretch, list[Stretch]]:
    index = path.with_suffix(".idx")
    whole = path.with_suffix(".bin")
    files = [whole] if whole.is_file() else sorted(p for p in path.parent.glob(f"{path.stem}-*-of-*.bin"))
    if not index.is_file() or not files:
        missing = whole if index.is_file() else index
        raise SourceError(
            f"{missing}: no such file; the training order is an .idx beside a .bin, whole or in numbered parts",
            hint="`path` names either, from the recipe's own folder; without it the hub's is read.",
        )
    _require_all_parts([p.name for p in files], str(path.parent))

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
    magic, version, dtype, n, _ = HEADER.unpack(index.read(0, HEADER.size))
    if magic != MAGIC or version != 1 or dtype != UINT16:
        raise IntegrityError(
            f"{index.name}: magic {magic!r}, version {version}, dtype {dtype}; {MAGIC!r}, 1 and 8 expected"
        )
    if index.size < HEADER.size + 12 * n:
        raise IntegrityError(f"{index.name}: {index.size} bytes are too few for its {n} sequences")
    return int(n)


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


def _tokens(
    index: Stretch, n: int, chosen: np.ndarray, length: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """First byte of each sequence, and the one after its `length`-th token: int64."""
    sizes_at, offsets_at = HEADER.size, HEADER.size + 4 * n
    of_sizes = [(sizes_at + 4 * i, sizes_at + 4 * i + 4) for i in chosen.tolist()]
    of_offsets = [(offsets_at + 8 * i, offsets_at + 8 * i + 8) for i in chosen.tolist()]
    read = b"".join(_read([index], of_sizes + of_offsets, f"Reading {index.name}", progress))
    sizes = np.frombuffer(read[: 4 * len(chosen)], "<i4")
    offsets = np.frombuffer(read[4 * len(chosen) :], "<i8")
    if sizes.min() < length:
        raise SourceError(
            f"{index.name}: a sequence has {sizes.min()} tokens; {length} were asked for",
            hint="Lower `sequence_length` in the recipe.",
        )
    return offsets, offsets + 2 * length


def _read(parts: Sequence[Stretch], spans: list[Span], title: str, progress: Progress) -> list[bytes]:
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
