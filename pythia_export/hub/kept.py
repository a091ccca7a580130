"""What is kept beside the hub's cache, in HF_HOME: conversions, hashes, listings, parts of files. All of it can go:
it is made or fetched again."""

from __future__ import annotations

from pathlib import Path

from ..disk import write_atomically


def kept(what: str) -> Path:
    """Return the folder for one kind of thing."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "pythia-export" / what


def write_kept(path: Path, *parts: bytes) -> None:
    """Write for this user alone, whole or not at all, whoever else writes it at the same time; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, b"".join(parts), durable=False, mode=0o600)
