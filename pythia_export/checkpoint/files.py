"""Files of a checkpoint's folder that are small, and whether a file is there at all or stands for one elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..strict_json import read_object

_POINTER = b"version https://git-lfs.github.com/spec/"


def require_fetched(path: Path) -> None:
    """SourceError where a file is what git has in place of a large file that git-lfs would have fetched."""
    with path.open("rb") as f:
        start = f.read(400)
    if not start.startswith(_POINTER):
        return
    size = re.search(rb"^size (\d{1,18})$", start, re.MULTILINE)
    of = f" of {int(size[1]):,} bytes" if size else ""
    raise SourceError(
        f"{path}: a git-lfs pointer to a file{of}, not the file itself: the repository was cloned without git-lfs",
        hint=f"`git lfs install` once, then `git lfs pull` in {path.parent}; or `pythia-export pull OWNER/NAME` "
        "fetches it from the hub.",
    )


def fetched_object(path: Path) -> dict[str, Any]:
    """Raises:
    IntegrityError: not a JSON object.
    SourceError: not fetched.
    """
    require_fetched(path)
    return read_object(path)
