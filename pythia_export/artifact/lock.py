"""Who holds a directory: an advisory lock on it, which ends with the process that took it."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows can read artifacts; it is not a place to write them
    fcntl = None  # type: ignore[assignment]


def lock_folder(folder: Path) -> int | None:
    """Hold `folder` until the descriptor is closed or the process ends; None where locks are not to be had.

    Raises:
        BlockingIOError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
