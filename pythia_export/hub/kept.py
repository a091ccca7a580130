"""What is kept beside the hub's cache, in HF_HOME: conversions, hashes, listings, parts of files. All of it can go:
it is made or fetched again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def kept(what: str) -> Path:
    """The folder for one kind of thing."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "pythia-export" / what


def write_kept(path: Path, *parts: bytes) -> None:
    """Whole or not at all, whoever else writes it at the same time; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as f:
        try:
            f.writelines(parts)
            f.close()
            os.replace(f.name, path)
        except BaseException:
            os.unlink(f.name)
            raise
