"""Does another training step hold the same tensors in another order of the same files? Asked by ranges, before anything
is downloaded.

A header tells where each tensor lies. Two files with equal headers and other hashes hold other tensors, so one request
per step, for as many bytes as our own header has, settles nearly all of them. Only where the header differs are some
tensors compared, by their first bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .. import hub
from ..base.errors import IntegrityError, SourceError
from ..base.progress import SILENT, Progress
from ..hub import Listing
from .fingerprint import SAMPLE
from .header import Entry, parse_header
from .ledger import Ledger
from .names import by_table_name

THREADS = 8
TENSORS = 8  # matrices that are compared, from the first to the last: training changes all of them


@dataclass(frozen=True)
class _Remote:
    """The safetensors files of one commit, read in parts."""

    repo: str
    commit: str
    names: tuple[str, ...]
    progress: Progress

    def read(self, name: str, start: int, end: int) -> bytes:
        return hub.read_part(self.repo, self.commit, name, start, end, self.progress)

    def header_end(self, name: str, known: Ledger) -> int:
        """Return where a header ends, and put it and the header's hash into the ledger."""
        told = known.digest(self.commit, f"{name}:")
        if told is None:
            (length,) = struct.unpack("<Q", self.read(name, 0, 8))
            header = _digest(self.read(name, 0, 8 + length))
            known.add(self.commit, {f"{name}:": str(8 + length), f"{name}:{8 + length}": header})
            return int(8 + length)
        return int(told)

    def entries(self) -> dict[str, tuple[str, Entry]]:
        """Return the file and the place of each tensor, by the names of the table."""
        found: dict[str, tuple[str, Entry]] = {}
        for name in self.names:
            (length,) = struct.unpack("<Q", self.read(name, 0, 8))
            raw = self.read(name, 8, 8 + length)
            found |= {tensor: (name, entry) for tensor, entry in parse_header(raw, f"{self.repo}, {name}").items()}
        return {table: found[tensor] for table, tensor in by_table_name(found, self.repo).items()}

    def sample(self, place: tuple[str, Entry]) -> bytes:
        name, entry = place
        return self.read(name, entry.offset, entry.offset + min(entry.nbytes, SAMPLE))


def reordered(
    listing: Listing, names: tuple[str, ...], others: Mapping[str, str], progress: Progress = SILENT
) -> list[str]:
    """Return the names among `others`, revision -> commit, that hold the tensors of `listing` in files of the same
    `names` and another order: none for files that are no safetensors, and offline what was found before.
    """
    known = Ledger(listing.repo)
    if listing.offline:
        return [revision for revision, c in others.items() if known.digest(listing.commit, _tensors_of(c)) is not None]
    there = {revision: c for revision, c in others.items() if all(known.digest(c, name) is not None for name in names)}
    if not there or not all(name.endswith(".safetensors") for name in names):
        return []
    own = _Remote(listing.repo, listing.commit, names, progress)
    try:
        ends = {name: own.header_end(name, known) for name in names}
        headers = {name: known.digest(listing.commit, f"{name}:{end}") for name, end in ends.items()}
        asked = {revision: commit for revision, commit in there.items() if not known.has(commit, _keys(ends))}
        title = f"Comparing the headers of {listing.repo} with other steps"
        with progress.track(title, len(asked), "revisions") as go, ThreadPoolExecutor(THREADS) as pool:

            def ask(commit: str) -> dict[str, str]:
                other = _Remote(listing.repo, commit, names, progress)
                return {f"{name}:{end}": _digest(other.read(name, 0, end)) for name, end in ends.items()}

            for commit, digests in zip(asked.values(), pool.map(ask, asked.values()), strict=True):
                known.add(commit, digests)
                go(1)
        known.save()
        differing = [
            revision
            for revision, commit in there.items()
            if any(known.digest(commit, f"{name}:{end}") != headers[name] for name, end in ends.items())
        ]
        same = [r for r in differing if _alike(own, _Remote(listing.repo, others[r], names, progress))]
        known.add(listing.commit, {_tensors_of(others[revision]): "same" for revision in same})
        known.save()
        return same
    except (SourceError, IntegrityError) as e:  # a mirror that knows no ranges, for example
        progress.note(f"{listing}: headers of other steps could not be read, so equal tensors in another order are not "
                      f"looked for: {e}")  # fmt: skip
        return []


def _keys(ends: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(f"{name}:{end}" for name, end in ends.items())


def _tensors_of(commit: str) -> str:
    return f"tensors of {commit}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _alike(own: _Remote, other: _Remote) -> bool:
    """Whether both have the same tensors by name, type and shape, and matrices that begin alike."""
    ours, theirs = own.entries(), other.entries()
    if _described(ours) != _described(theirs):
        return False
    return all(own.sample(ours[name]) == other.sample(theirs[name]) for name in _chosen(ours))


def _described(entries: Mapping[str, tuple[str, Entry]]) -> set[tuple[str, str, tuple[int, ...]]]:
    return {(name, entry.dtype, entry.shape) for name, (_, entry) in entries.items()}


def _chosen(entries: Mapping[str, tuple[str, Entry]]) -> Iterator[str]:
    matrices = sorted(name for name, (_, entry) in entries.items() if len(entry.shape) == 2)
    yield from matrices[:: max(1, len(matrices) // TENSORS)]
