"""manifest.json: its shape, the names that it may hold, and the size and SHA-256 of every file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from ..base.errors import IntegrityError, SourceError
from ..base.git_lfs import is_pointer
from ..base.strict_json import shown
from ..records.manifest import MANIFEST_SCHEMA, FileEntry, Manifest
from ..records.record import checked
from .pending import current
from .snapshot import is_own_file

LONGEST_PATH, LONGEST_NAME = 1024, 200  # bytes, inside the artifact; names of hidden siblings are longer by some


def check_shape(manifest: Any, where: Path) -> None:
    """That this is a manifest of ours, of whatever schema."""
    if not (isinstance(manifest, dict) and type(manifest.get("schema")) is int):
        raise IntegrityError(f"{where}: an object with a number `schema` was expected")
    if not isinstance(manifest.get("files"), dict):
        raise IntegrityError(f"{where}: no object `files`")


def checked_manifest(manifest: Any, where: Path) -> Manifest:
    """Return parsed JSON as a manifest of this version's schema.

    Raises:
        SourceError: it is of another schema.
        IntegrityError: it is no manifest, or names a file that cannot be in the artifact.
    """
    check_shape(manifest, where)
    if manifest["schema"] != MANIFEST_SCHEMA:
        raise SourceError(
            f"{where}: schema {shown(manifest['schema'])}; this version of pythia-export reads "
            f"schema {MANIFEST_SCHEMA}",
            hint="A newer pythia-export may read it.",
        )
    for name in manifest["files"]:
        if not is_inside(name):
            raise IntegrityError(f"{where}: names {shown(name)}, which lies outside the artifact")
        longest = max(len(os.fsencode(part)) for part in name.split("/"))
        if len(os.fsencode(name)) > LONGEST_PATH or longest > LONGEST_NAME:
            raise IntegrityError(f"{where}: names {shown(name)}, which is longer than file systems take")
    return checked(Manifest, manifest, where)


def is_inside(name: str) -> bool:
    """Whether a name of the manifest is a plain relative path, on any system."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and path.as_posix() == name
        and not any(c in name for c in "\\:\0")
    )


def size_fault(folder: Path, name: str, entry: FileEntry) -> str | None:
    path = current(folder, name, entry.sha256)
    if not is_own_file(folder, path.relative_to(folder).as_posix()):
        return "a symbolic link; an artifact holds its own files"
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size == entry.size:
        return None
    instead = "a git-lfs pointer (`git lfs pull` fetches the file)" if is_pointer(path) else f"{size:,} bytes"
    return f"{instead}; the manifest says {entry.size:,} bytes"


def hash_fault(folder: Path, name: str, entry: FileEntry) -> str | None:
    if problem := size_fault(folder, name, entry):
        return problem
    found = describe(current(folder, name, entry.sha256)).sha256
    return None if found == entry.sha256 else f"sha256 {found}; the manifest says {entry.sha256}"


def describe(path: Path) -> FileEntry:
    with path.open("rb") as f:
        return FileEntry(sha256=hashlib.file_digest(f, "sha256").hexdigest(), size=path.stat().st_size)


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
