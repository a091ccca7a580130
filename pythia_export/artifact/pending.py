"""Replacing files of a published artifact so that it agrees with its manifest at every moment.

The new files are written beside the old ones first, as ``.NAME.next-HASH``, HASH being the beginning of their SHA-256.
Then the manifest is replaced, in one rename: that is the moment when the new files count. Then each gets its name. A
file of the manifest is therefore the pending one with its hash where that is there, and the plain one otherwise. What a
killed process left pending is either named by the manifest, and gets its name, or is not, and is removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from ..disk.write import fsync
from ..records.manifest import FileEntry

_PENDING = re.compile(r"\.(.+)\.next-([0-9a-f]{16})")


def pending(folder: Path, name: str, sha256: str) -> Path:
    """Return where a file of this content waits for its name."""
    path = folder / name
    return path.with_name(f".{path.name}.next-{sha256[:16]}")


def current(folder: Path, name: str, sha256: str) -> Path:
    """Return where the file is that the manifest names with this SHA-256."""
    waiting = pending(folder, name, sha256)
    return waiting if waiting.is_file() else folder / name


def is_pending(path: Path) -> bool:
    return _PENDING.fullmatch(path.name) is not None


def give_names(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Give every pending file of the manifest its name. Whoever does so at the same time does the same."""
    for name, entry in files.items():
        waiting = pending(folder, name, entry.sha256)
        if waiting.is_file():
            with suppress(FileNotFoundError):
                os.replace(waiting, folder / name)
                fsync((folder / name).parent)


def remove_strays(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Remove pending files that the manifest does not name. Only for who holds the artifact."""
    for path in _all(folder):
        if not any(path == pending(folder, name, entry.sha256) for name, entry in files.items()):
            path.unlink(missing_ok=True)


def _all(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob(".*.next-*") if is_pending(path))
