"""What git leaves of a large file where git-lfs is not installed: a pointer of three lines in its place."""

from __future__ import annotations

from ..base.errors import SourceError

_POINTER = b"version https://git-lfs"


def refuse_pointer(head: bytes, source: str) -> None:
    """Raises:
    SourceError: the file that begins with `head` is a pointer of git-lfs.
    """
    if head.startswith(_POINTER):
        raise SourceError(
            f"{source} is a pointer of git-lfs: the file itself was not fetched",
            hint="`git lfs install`, then `git lfs pull` in that folder; or name the data set by source = 'hub'.",
        )
