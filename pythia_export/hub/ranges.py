"""Parts of large files, by range requests: each is kept beside the hub's cache, so that it is fetched once.

A whole file is held to the hub's hash; a part cannot be. It is pinned to the commit that the listing names, must have
the length and place that were asked for, and is kept with a SHA-256 of its own, so that what was read once is read
alike ever after, offline too.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..base.errors import IntegrityError, SourceError
from ..base.progress import SILENT, Progress
from .faults import again, told
from .kept import kept, write_kept
from .listing import HubFile, Listing, not_cached, remember, repository_folder

PIECE = 1 << 22  # bytes: of the Pile's .zst some 1,700 documents
_CHANGED = "Try again later; a proxy or a mirror (HF_ENDPOINT) may change what it passes on."
_PIECE_OF_REST = 1 << 20
_DIGEST = hashlib.sha256().digest_size


def read_range(listing: Listing, name: str, start: int, end: int, progress: Progress = SILENT) -> bytes:
    """Bytes `start` to `end` of a file, without the others.

    Raises:
        SourceError: the hub does not give it, or offline and never read before.
        IntegrityError: the hub sent another part of the file, or of a file of another size.
        ResourceError: no space to keep it.
    """
    path = kept("ranges") / repository_folder(listing.repo, listing.kind) / listing.commit / name / f"{start}-{end}"
    with told(listing.repo, listing.revision):
        there = _read(path, end - start)
        if there is not None:
            return there
        if listing.offline:
            raise not_cached(listing.repo, listing.revision, f"{name}, bytes {start:,} to {end:,}")
        data = again(lambda: _request(listing, name, start, end), f"{listing.repo}/{name}", progress)
        write_kept(path, data, hashlib.sha256(data).digest())
        remember(listing)
    return data


def read_part(repo: str, commit: str, name: str, start: int, end: int, progress: Progress = SILENT) -> bytes:
    """Return bytes `start` to `end` of a model's file that was not listed, and keep nothing; raises as `read_range`."""
    unlisted = Listing(repo, "model", commit, commit, {name: HubFile(name, None, None)}, False)
    with told(repo, commit):
        return again(lambda: _request(unlisted, name, start, end), f"{repo}/{name}", progress)


class RemoteFile(io.RawIOBase):
    """A file of the hub as a file: pieces of it are fetched when they are first read."""

    def __init__(self, listing: Listing, name: str, progress: Progress = SILENT) -> None:
        size = listing.files[name].size
        if size is None:
            raise SourceError(f"{listing}: the size of {name} is not known, so parts of it cannot be read")
        self._listing, self._file, self._size, self._progress = listing, name, size, progress
        self._at, self._piece, self._start = 0, b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size:
            return 0
        if not self._start <= self._at < self._start + len(self._piece):
            self._start = self._at // PIECE * PIECE
            end = min(self._start + PIECE, self._size)
            self._piece = read_range(self._listing, self._file, self._start, end, self._progress)
        offset = self._at - self._start
        n = min(len(buffer), len(self._piece) - offset)
        buffer[:n] = self._piece[offset : offset + n]
        self._at += n
        return n


def rest_of(listing: Listing, name: str, start: int) -> Iterator[bytes]:
    """Yield a listed file from byte `start` on to its end, as it comes; nothing is kept or tried again.

    Raises:
        IntegrityError: the hub sends another part of the file, or of a file of another size.
    """
    size = listing.files[name].size
    assert size is not None
    with _answer(listing, name, start, size) as response:
        pieces = response.iter_bytes if hasattr(response, "iter_bytes") else response.iter_content
        for piece in pieces(_PIECE_OF_REST):
            start += len(piece)
            if start > size:
                raise IntegrityError(f"{listing}: of {name} {start:,} bytes came, {size:,} are listed")
            yield piece
    if start != size:
        raise ConnectionError(f"the connection ended after {start:,} of {size:,} bytes")


def _request(listing: Listing, name: str, start: int, end: int) -> bytes:
    with _answer(listing, name, start, end) as response:
        data: bytes = response.read() if hasattr(response, "aread") else response.content
    if len(data) != end - start:
        raise ConnectionError(f"the connection ended after {len(data):,} of {end - start:,} bytes")
    return data


@contextmanager
def _answer(listing: Listing, name: str, start: int, end: int) -> Iterator[Any]:
    """The response to a request for bytes `start` to `end`, its body not read yet: of requests, httpx or httpx2."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    url = hf_hub_url(listing.repo, name, repo_type=listing.kind, revision=listing.commit)
    asked = {"Range": f"bytes={start}-{end - 1}"} if (start, end) != (0, listing.files[name].size) else {}
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | asked
    session: Any = get_session()
    limit = constants.HF_HUB_DOWNLOAD_TIMEOUT
    # Headers before the body: a server that knows no ranges would send all of 30 GB.
    if hasattr(session, "build_request"):  # httpx from huggingface_hub 1.0 on, httpx2 from 2.0 on
        request = session.build_request("GET", url, headers=headers, timeout=limit)
        response = session.send(request, stream=True, follow_redirects=True)
    else:
        response = session.get(url, headers=headers, stream=True, timeout=limit)
    try:
        if response.status_code != 416:
            hf_raise_for_status(response)
        elif asked:
            raise IntegrityError(f"{listing}: {name} ends before byte {start:,}; {end:,} are listed", hint=_CHANGED)
        if not asked:
            yield response
            return
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
        size = listing.files[name].size  # None where it was not asked for
        if response.status_code != 206 or found is None:
            raise IntegrityError(
                f"{listing}: {name} was asked for in part and sent whole (status {response.status_code})",
                hint="The hub knows ranges; a proxy or a mirror between (HF_ENDPOINT) may not.",
            )
        if (int(found[1]), int(found[2])) != (start, end - 1) or size not in (None, int(found[3])):
            raise IntegrityError(
                f"{listing}: of {name} bytes {start} to {end - 1} of {size} were asked for, {found[0]} sent",
                hint=_CHANGED,
            )
        yield response
    finally:
        response.close()


def _read(path: Path, length: int) -> bytes | None:
    """What was kept, or None where there is nothing or no longer what was kept."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    data, digest = raw[:-_DIGEST], raw[-_DIGEST:]
    return data if len(data) == length and hashlib.sha256(data).digest() == digest else None
