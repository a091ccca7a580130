"""Hidden siblings of what is written: .<name>.tmp-<pid>-<random> is being written, .<name>.old-<pid>-<random> was
just replaced. The process id and a lock tell whether whoever made one still lives."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from .lock import lock_folder


def sibling(path: Path, kind: str) -> Path:
    return path.parent / f".{path.name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}"


def siblings(path: Path, kind: str) -> Iterator[Path]:
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{kind}-\d+-[0-9a-f]{{8}}")
    return (p for p in sorted(path.parent.iterdir()) if pattern.fullmatch(p.name))


def owner(path: Path) -> int | None:
    """Process id in the name of a hidden sibling."""
    match = re.fullmatch(r"\..+\.(?:tmp|old)-(\d+)-[0-9a-f]{8}", path.name)
    return int(match[1]) if match else None


def clean_up(out: Path) -> None:
    """Undo what processes that were killed left beside `out`."""
    for aside in siblings(out, "old"):
        if is_stale(aside):
            if os.path.lexists(out):
                shutil.rmtree(aside)
            else:
                os.rename(aside, out)
    for staging in siblings(out, "tmp"):
        if is_stale(staging):
            shutil.rmtree(staging)


def is_stale(path: Path) -> bool:
    """Whether the process that made it is gone.

    Containers give every run the same few process ids and hide each other's; the lock tells in both cases. A file
    system without locks leaves the process id alone to tell.
    """
    pid = owner(path)
    if pid is None or (pid != os.getpid() and is_alive(pid)):
        return False
    if not path.is_dir():
        return pid != os.getpid()
    try:
        lock = lock_folder(path)
    except BlockingIOError:
        return False
    if lock is None:
        return pid != os.getpid()
    os.close(lock)
    return True


def is_alive(pid: int) -> bool:
    """Whether a process of this number is there, on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists and is another user's
        return True
    return True
