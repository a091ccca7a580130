"""Writing so that what is there is whole: flushed to the disk, then renamed. What the system says of a place that
cannot be written becomes an error that names it."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from ..base.errors import OutputError, ResourceError
from .siblings import sibling

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, data: bytes, *, durable: bool = True, mode: int = 0o666) -> None:
    """Write a file whole or not at all, whoever else writes it at the same time.

    `durable` has it on the disk when this returns. What can be made again need not wait for that. `mode` is that of
    open(2), from which the umask takes.
    """
    temporary = sibling(path, "tmp")
    try:
        temporary.touch(mode, exist_ok=False)
        temporary.write_bytes(data)
        if durable:
            fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        fsync(path.parent)


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(out: Path, when_full: str | None = None) -> Iterator[None]:
    """Name the place in what the operating system says about it; `when_full` is the hint where no space is left.

    Raises:
        ResourceError: no space is left.
        OutputError: it cannot be written for another reason.
    """
    try:
        yield
    except OSError as e:
        if e.errno in DISK_FULL:
            raise_disk_full(out, e, when_full)
        raise OutputError(f"{out} cannot be written: {e}", hint="Choose another place.") from e


def raise_disk_full(out: Path, error: OSError, hint: str | None = None) -> NoReturn:
    free = shutil.disk_usage(next(p for p in out.parents if p.is_dir())).free
    raise ResourceError(
        f"no space left while writing {out} ({free:,} bytes are free there now): {error}",
        hint=hint or "Free some space, or choose another place; `pythia-export plan` tells the size in advance.",
    ) from error


def exchange(a: Path, b: Path) -> bool:
    """Swap two directories in one step where the system can (Linux: renameat2 with RENAME_EXCHANGE)."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    at_fdcwd, rename_exchange = -100, 2
    return renameat2 is not None and renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0
