"""manifest.json: its shape, the names that it may hold, and the size and SHA-256 of every file."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import IntegrityError, SourceError
from .pending import current
from .snapshot import is_own_file

SCHEMA = 1
MANIFEST = "manifest.json"

_SHA256 = re.compile("[0-9a-f]{64}")
_SECTIONS = {"source": dict, "recipe": dict, "layout": dict, "files": dict}


def check_shape(manifest: Any, where: Path) -> None:
    """That this is a manifest of ours, of whatever schema."""
    if not (isinstance(manifest, dict) and isinstance(manifest.get("schema"), int)):
        raise IntegrityError(f"{where}: an object with a number `schema` was expected")
    if not isinstance(manifest.get("files"), dict):
        raise IntegrityError(f"{where}: no object `files`")


def check_manifest(manifest: Any, where: Path) -> None:
    check_shape(manifest, where)
    if manifest["schema"] != SCHEMA:
        raise SourceError(
            f"{where}: schema {manifest['schema']}; this version of pythia-export reads schema {SCHEMA}",
            hint="A newer pythia-export may read it.",
        )
    for section, kind in _SECTIONS.items():
        if not isinstance(manifest.get(section), kind):
            raise IntegrityError(f"{where}: no object `{section}`")
    for part in ("name", "commit"):
        if not isinstance(manifest["source"].get(part), str):
            raise IntegrityError(f"{where}: no string `source.{part}`")
    for name, entry in manifest["files"].items():
        if not is_inside(name):
            raise IntegrityError(f"{where}: names {name!r}, which lies outside the artifact")
        good = isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)
        if not good or not _SHA256.fullmatch(entry["sha256"]):
            raise IntegrityError(f"{where}: files.{name} must have a number `size` and a SHA-256 as `sha256`")


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


def size_fault(folder: Path, name: str, entry: dict[str, Any]) -> str | None:
    path = current(folder, name, entry["sha256"])
    if not is_own_file(folder, path.relative_to(folder).as_posix()):
        return "a symbolic link; an artifact holds its own files"
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    return None if size == entry["size"] else f"{size:,} bytes; the manifest says {entry['size']:,}"


def hash_fault(folder: Path, name: str, entry: dict[str, Any]) -> str | None:
    if problem := size_fault(folder, name, entry):
        return problem
    found = describe(current(folder, name, entry["sha256"]))["sha256"]
    return None if found == entry["sha256"] else f"sha256 {found}; the manifest says {entry['sha256']}"


def describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as f:
        return {"sha256": hashlib.file_digest(f, "sha256").hexdigest(), "size": path.stat().st_size}


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
