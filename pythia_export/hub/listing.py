"""What a revision of a repository holds: its commit, and the size and hash of every file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from ..base.errors import IntegrityError, SourceError
from ..base.progress import SILENT, Progress
from ..base.strict_json import read_object
from .faults import again, told
from .kept import kept, write_kept

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class HubFile:
    """`digest` is the SHA-256 of a file in large file storage, git's SHA-1 of the blob elsewhere; None if not known."""

    name: str
    size: int | None
    digest: str | None


@dataclass(frozen=True)
class Listing:
    """A revision as the hub lists it, or as much of it as the cache has (`offline`)."""

    repo: str
    kind: Kind
    revision: str
    commit: str
    files: dict[str, HubFile]
    offline: bool

    def __str__(self) -> str:
        return f"{self.repo} at {self.revision}"


def offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def list_revision(repo: str, revision: str, kind: Kind = "model", progress: Progress = SILENT) -> Listing:
    """One call of the API; offline none, then what was remembered of the revision or what the cache has of it.

    Raises:
        SourceError: no such repository or revision, or it cannot be read.
    """
    if offline():
        return _remembered(repo, revision, kind) or _cached(repo, revision, kind)
    from huggingface_hub import HfApi

    def ask() -> Any:
        return HfApi().repo_info(repo, revision=revision, repo_type=kind, files_metadata=True)

    with told(repo, revision):
        info = again(ask, f"{repo} at {revision}", progress)
    files = {}
    for s in info.siblings or []:
        digest = s.lfs.sha256 if s.lfs is not None else s.blob_id
        files[s.rfilename] = HubFile(s.rfilename, s.size, digest)
    return Listing(repo, kind, revision, info.sha, files, False)


def branches(repo: str, progress: Progress = SILENT) -> dict[str, str]:
    """Commit of each branch; one call of the API."""
    from huggingface_hub import HfApi

    with told(repo, "its branches"):
        refs = again(lambda: HfApi().list_repo_refs(repo), repo, progress)
    return {branch.name: branch.target_commit for branch in refs.branches}


def digest_of(repo: str, commit: str, name: str, progress: Progress = SILENT) -> str | None:
    """Hash of one file at a commit, None where the commit lacks it. One HEAD request, no call of the API."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    def ask() -> str | None:
        try:
            return get_hf_file_metadata(hf_hub_url(repo, name, revision=commit)).etag
        except EntryNotFoundError:
            return None

    with told(repo, commit):
        return again(ask, f"{repo}/{name}", progress)


def repository_folder(repo: str, kind: Kind) -> str:
    """``datasets--owner--name``, as the hub's own cache calls it."""
    return f"{kind}s--{repo.replace('/', '--')}"


def remember(listing: Listing) -> None:
    """Keep a listing for offline runs, by its name and by its commit: of files read in part the cache knows nothing."""
    raw = {"commit": listing.commit, "files": {f.name: [f.size, f.digest] for f in listing.files.values()}}
    data = json.dumps(raw).encode()
    for revision in (listing.revision, listing.commit):
        path = _memory(listing.repo, revision, listing.kind)
        if not path.is_file() or path.read_bytes() != data:
            write_kept(path, data)


def _memory(repo: str, revision: str, kind: Kind) -> Path:
    return kept("listings") / repository_folder(repo, kind) / f"{quote(revision, safe='')}.json"


def _remembered(repo: str, revision: str, kind: Kind) -> Listing | None:
    try:
        raw = read_object(_memory(repo, revision, kind))
        files = {name: HubFile(name, size, digest) for name, (size, digest) in raw["files"].items()}
        return Listing(repo, kind, revision, raw["commit"], files, True)
    except (OSError, IntegrityError, ValueError, KeyError, TypeError, AttributeError):
        # None, or damaged: as good as none.
        return None


def _cached(repo: str, revision: str, kind: Kind) -> Listing:
    from huggingface_hub import constants

    with told(repo, revision):
        folder = Path(constants.HF_HUB_CACHE) / repository_folder(repo, kind)
        ref = folder / "refs" / revision
        commit = ref.read_text().strip() if ref.is_file() else revision
        snapshot = folder / "snapshots" / commit
        if not re.fullmatch(r"[0-9a-f]{40}", commit) or not snapshot.is_dir():
            raise not_cached(repo, revision)
        files = {}
        for path in sorted(p for p in snapshot.rglob("*") if p.is_file()):
            name = path.relative_to(snapshot).as_posix()
            blob = path.resolve().name  # the cache calls a blob by its hash; copies, where links cannot be, by name
            digest = blob if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob) else None
            files[name] = HubFile(name, path.stat().st_size, digest)
    return Listing(repo, kind, revision, commit, files, True)


def not_cached(repo: str, revision: str, missing: str = "") -> SourceError:
    return SourceError(
        f"{repo} at {revision} is not in the cache{f' ({missing} is missing)' if missing else ''}, and the hub is not "
        "asked",
        hint="Pull it once without --offline and HF_HUB_OFFLINE.",
    )
