"""A folder as the hub's client lays it out: `snapshots/<commit>/<name>` are links into `blobs/` of the same repository.

Such a folder is an artifact like any other, but for two things: its files are links, and the cache is the client's, so
that nothing is ever written there.
"""

from __future__ import annotations

from pathlib import Path


def is_snapshot(folder: Path) -> bool:
    """Return whether a folder lies in the hub's cache."""
    real = folder.resolve()
    return real.parent.name == "snapshots" and _blobs(real).is_dir()


def is_own_file(folder: Path, name: str) -> bool:
    """Return whether a name stands for a file of the folder itself, or of the blobs that a snapshot's links lead to.

    Any other link is somebody else's file, whatever it holds today. One that leads nowhere counts as missing: not own.
    """
    path = folder / name
    if any(above.is_symlink() for above in path.parents if folder in above.parents):
        return False
    if not path.is_symlink():
        return True
    target = path.resolve()
    return is_snapshot(folder) and target.parent == _blobs(folder.resolve()) and not target.is_symlink()


def _blobs(snapshot: Path) -> Path:
    return snapshot.parents[1] / "blobs"
