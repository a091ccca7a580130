"""JSON files of a checkpoint's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.git_lfs import require_fetched
from ..base.strict_json import read_object


def fetched_object(path: Path) -> dict[str, Any]:
    """Raises:
    IntegrityError: not a JSON object.
    SourceError: not fetched.
    """
    require_fetched(path)
    return read_object(path)
