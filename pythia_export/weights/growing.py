"""The SHA-256 of a file while it is written. What will not change is hashed meanwhile, and given to the disk, so that
nobody waits at the end."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from ..base.beside import beside
from ..base.hashing import FileHash
from ..disk.write import fsync

_AT_ONCE = 1 << 24  # bytes that are hashed in one piece, at least
_TO_DISK = 1 << 26  # and given to the disk


class GrowingHash:
    """Hash a file of `size` bytes from its start, as far as `final` allows."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._ends: SimpleQueue[int | None] = SimpleQueue()
        self._told = 0
        self._result = beside(self._hash)

    def final(self, end: int) -> None:
        """The first `end` bytes are in the file, and will not change."""
        if end == self._size or end - self._told >= _AT_ONCE:
            self._told = end
            self._ends.put(end)

    def stop(self) -> None:
        """The file will not be finished."""
        self._ends.put(None)

    def result(self) -> str:
        """Return the hash of the whole file, hexadecimal, once `final` has had its size."""
        found = self._result()
        assert found is not None, "the file was not finished"
        return found

    def _hash(self) -> str | None:
        found, end, synced = FileHash(self._path), 0, 0
        while end < self._size:
            told = self._ends.get()
            if told is None:
                return None
            end = told
            if end - synced >= _TO_DISK:
                beside(partial(_sync, self._path))
                synced = end
            found.to(end)
        return found.hexdigest()


def _sync(path: Path) -> None:
    """Begin what publishing completes: an error is told there."""
    with suppress(OSError):
        fsync(path)
