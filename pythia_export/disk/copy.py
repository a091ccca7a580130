"""Weights, copied so that they are read fast afterwards."""

from __future__ import annotations

from pathlib import Path

PIECE = 8 << 20  # bytes


def copy_weights(source: Path, to: Path) -> None:
    """Copy a large file, a piece of `PIECE` bytes at a time.

    A session reads weights where the system caches their file, in pieces as large as those that were written.
    `shutil.copyfile` writes a few pages at a time on Linux. From such pieces pythia-160m decodes a sixth slower, until
    the file has left the cache (benchmarks/README.md, "How a file was written").
    """
    with source.open("rb", buffering=0) as given, to.open("wb") as made:
        while piece := given.read(PIECE):
            made.write(piece)
