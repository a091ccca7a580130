"""SHA-256 of large files beside threads that compute: in few, large pieces, since each piece waits for Python's lock.

A piece is mapped, and unmapped once it is hashed, so that no more than a piece counts as this process's memory.
"""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path

_PIECE = 1 << 26  # bytes


class FileHash:
    """The hash of a file from its start, as far as it was asked for."""

    def __init__(self, path: Path) -> None:
        self._path, self._hash, self._done = path, hashlib.sha256(), 0

    def to(self, end: int) -> None:
        """Hash on, to byte `end`, which the file has."""
        with self._path.open("rb") as file:
            while self._done < end:
                before = self._done % mmap.ALLOCATIONGRANULARITY  # a mapping begins at a page
                length = min(_PIECE, end - self._done)
                with (
                    mmap.mmap(
                        file.fileno(), before + length, access=mmap.ACCESS_READ, offset=self._done - before
                    ) as at,
                    memoryview(at) as mapped,
                    mapped[before:] as piece,
                ):
                    self._hash.update(piece)
                self._done += length

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the hash of a file, hexadecimal."""
    found = FileHash(path)
    found.to(path.stat().st_size)
    return found.hexdigest()
