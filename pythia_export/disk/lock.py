"""Who writes to a directory: advisory locks, which end with the process that took them."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..base.errors import OutputError
from ..base.machine import now

try:
    import fcntl
except ImportError:  # Windows can read artifacts; it is not a place to write them
    fcntl = None  # type: ignore[assignment]


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the name `folder` for writing, whether it is there or not, until the body ends.

    A hidden file beside it, `.NAME.lock`, is locked and tells who holds it; it is removed at the end, and one that a
    killed process left is taken over. Where nothing can be written beside it, the lock on the directory itself has to
    do: whoever holds the name holds that as well.

    Raises:
        OutputError: another process holds it; the message tells which.
    """
    folder = Path(os.path.abspath(folder))
    beside = folder.parent / f".{folder.name}.lock"
    with ExitStack() as stack:
        taken = None
        try:
            taken = _lock_file(beside)
            if taken is not None:
                stack.callback(os.close, taken)
                stack.callback(_remove, beside)  # while it is still locked
                _sign(taken)
            own = lock_folder(folder) if folder.is_dir() else None
            if own is not None:
                stack.callback(os.close, own)
        except BlockingIOError:
            # A directory that is held while the file beside it is not: through a mount of its own, for example.
            holder = "another process" if taken is not None else _holder(beside)
            raise OutputError(
                f"{folder}: {holder} is writing there", hint="Wait until it has ended, or stop it."
            ) from None
        yield


def lock_folder(folder: Path) -> int | None:
    """Hold `folder` until the descriptor is closed or the process ends; None where locks are not to be had.

    Raises:
        BlockingIOError: another process holds it.
    """
    return _locked(os.open(folder, os.O_RDONLY))


def _lock_file(path: Path) -> int | None:
    """Lock the file, made where there is none; None where it cannot be made or locked."""
    while True:
        try:
            descriptor = _locked(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666))
        except BlockingIOError:
            raise
        except OSError:  # the directory cannot be written, or is not there
            return None
        if descriptor is None:
            _remove(path)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # whoever held it before removed it between our two calls


def _locked(descriptor: int) -> int | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _sign(descriptor: int) -> None:
    """Write into the lock file who holds it. On a full disk nobody is named."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        program = program.parent  # python -m
    command = " ".join([program.name, *sys.argv[1:]])
    facts = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": command[:300],
        "since": now(),
    }
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(facts).encode())


def _holder(path: Path) -> str:
    """Name the process that holds the lock, as far as it is known."""
    try:
        facts = json.loads(path.read_bytes()[:4096])
        return f"process {facts['pid']} on {facts['host']} (`{facts['command']}`, since {facts['since']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
