"""Files that git has in place of large ones: a clone without git-lfs holds pointers of three lines.

https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

from .errors import SourceError

_START = b"version https://git-lfs.github.com/spec/"
_ENOUGH = b"version https://git-lfs"  # where no more than a header was read


def is_pointer(path: Path) -> bool:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        return False
    with path.open("rb") as f:
        return f.read(len(_START)) == _START


def refuse_pointer(head: bytes, source: str) -> None:
    """
    Raises:
        SourceError: the file that begins with `head` is a pointer of git-lfs.
    """
    if head.startswith(_ENOUGH):
        raise SourceError(
            f"{source} is a pointer of git-lfs: the file itself was not fetched",
            hint="`git lfs install`, then `git lfs pull` in that folder; or name the data set by source = 'hub'.",
        )


def require_fetched(path: Path) -> None:
    """SourceError where a file is a pointer to the one that git-lfs would have fetched."""
    if not is_pointer(path):
        return
    with path.open("rb") as f:
        size = re.search(rb"^size (\d{1,18})$", f.read(400), re.MULTILINE)
    of = f" of {int(size[1]):,} bytes" if size else ""
    raise SourceError(
        f"{path}: a git-lfs pointer to a file{of}, not the file itself: the repository was cloned without git-lfs",
        hint=f"`git lfs install` once, then `git lfs pull` in {path.parent}; of a model on the hub, "
        "`pythia-export pull OWNER/NAME` fetches all files.",
    )
