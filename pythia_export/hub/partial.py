"""A large file of which a part has come: the part stays in the cache, and the next process goes on there.

The client does not do that. huggingface_hub from 1.0 on begins a file anew that another process left half fetched, and
so does every version that fetches by Xet. On a line that breaks more often than 10 GB take, such a file never arrives.
So a large file is fetched here, by plain HTTP, into a file beside the blob that it becomes. Once it is whole the client
is asked for it as for any file: it finds the blob, and links it.

Xet has several connections and is faster on a good line. Where the client has it, it goes first. What it does not
finish is fetched here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from ..base.errors import IntegrityError
from ..base.progress import SILENT, Progress
from .faults import passes
from .kept import kept
from .listing import HubFile, Listing
from .ranges import rest_of

LARGE = 1 << 24  # bytes: a smaller file is fetched anew
_STALE = 600.0  # seconds: whoever fetches a file writes to it more often
_PAUSE = 1.0  # seconds between a cut and going on, as the client waits


@contextmanager
def kept_in_part(listing: Listing, file: HubFile, blob: Path, progress: Progress = SILENT) -> Iterator[None]:
    """Hold a large file for this process; the body asks the client for it.

    `blob` is where the cache has the file once it is whole. It is put there first, unless the client is to try Xet. If
    the body fails, what has come stays.
    """
    if file.size is None or file.size < LARGE or file.digest is None or len(file.digest) != 64:
        yield
        return
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    part = part_of(blob)
    lock = kept("locks") / f"{file.digest}.lock"
    for folder in (part.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        try:
            if not blob.exists():
                begun = part.exists()
                part.touch()  # from now on it is known that the file was begun, however this process ends
                if (begun or not _has_xet()) and _fetch_rest(listing, file, part):
                    os.replace(part, blob)
            yield
        except BaseException:
            if part.exists():
                progress.note(_left(listing, file, part.stat().st_size))
            raise
        part.unlink(missing_ok=True)
        _clean_up(blob)


def part_of(blob: Path) -> Path:
    """Return where the part of a file is kept that has come."""
    return blob.with_name(f"{blob.name}.pythia-export.incomplete")


def _has_xet() -> bool:
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None


def _fetch_rest(listing: Listing, file: HubFile, part: Path) -> bool:
    """Add what is missing. A cut connection that brought something is no failure: the next one goes on.

    Returns False where the hub does not give the rest: a mirror that knows no ranges, a file of another size. What has
    come is dropped then, and the client is left to it.
    """
    assert file.size is not None
    with part.open("r+b") as out:
        while (have := out.seek(0, os.SEEK_END)) < file.size:
            try:
                for chunk in rest_of(listing, file.name, have):
                    out.write(chunk)
            except IntegrityError:
                out.truncate(0)
                return False
            except Exception as e:
                if not passes(e) or out.tell() == have:
                    raise
                time.sleep(_PAUSE)
        if have > file.size:
            out.truncate(0)
        return have == file.size


def _clean_up(blob: Path) -> None:
    """Remove what clients that were killed left of the same file: no client takes it up again."""
    for path in blob.parent.glob(f"{blob.name}*.incomplete"):
        try:
            if time.time() - path.stat().st_mtime > _STALE:
                path.unlink()
        except OSError:  # another process removes it too
            continue


def _left(listing: Listing, file: HubFile, size: int) -> str:
    assert file.size is not None
    name = f"{listing.repo}/{file.name}"
    if not size:
        return f"{name} did not come whole; the next try fetches it by plain HTTP, which can go on where it stopped"
    return f"{name}: {size / 1e9:,.2f} of {file.size / 1e9:,.2f} GB have come and are kept; the next try goes on there"
