"""An artifact from the hub: pinned to a commit, fetched into the hub client's own cache, and used from there."""

from __future__ import annotations

import re
from pathlib import Path

from .. import hub
from ..base.errors import IntegrityError, SourceError
from ..base.progress import SILENT, Progress
from ..base.strict_json import read_json
from . import MANIFEST
from .manifest import checked_manifest
from .signature import SIGNATURE

_NAMED = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([^@\s]+))?")


def repository_named(text: str) -> tuple[str, str] | None:
    """Return repository and revision of OWNER/NAME or OWNER/NAME@REVISION; None for anything else.

    A path of this machine goes first: what is there, or whose folder above is there, is no repository.
    """
    found = _NAMED.fullmatch(text)
    if found is None or Path(text).exists() or Path(text).parent.exists():
        return None
    return found[1], found[2] or "main"


def download_artifact(repo: str, revision: str = "main", progress: Progress = SILENT) -> Path:
    """Fetch an artifact that was pushed; what is in the cache already is not fetched again. Returns its folder.

    Raises:
        SourceError: no such repository or revision, offline and not in the cache, or it holds no artifact.
        IntegrityError: a file is not what the hub lists, or one that the manifest names is not there.
        ResourceError: not enough disk space.
    """
    listing = hub.list_revision(repo, revision, progress=progress)
    if MANIFEST not in listing.files:
        raise SourceError(f"{listing} is no artifact: it has no {MANIFEST}", hint=_hint(listing))
    first = hub.fetch(listing, [MANIFEST], progress, f"Reading {MANIFEST} of {repo}")[MANIFEST]
    described = checked_manifest(read_json(first), first).files
    missing = sorted(described.keys() - listing.files.keys())
    if missing:
        if listing.offline:
            raise hub.not_cached(repo, revision, missing[0])
        raise IntegrityError(
            f"{listing} lacks {', '.join(missing[:5])}, which its {MANIFEST} names", hint="Push the artifact again."
        )
    hub.fetch(listing, [*described, *(n for n in (SIGNATURE,) if n in listing.files)], progress)
    return first.parent


def _hint(listing: hub.Listing) -> str:
    if listing.offline:
        return "Its files are not all in the cache: run it once without --offline."
    if "config.json" in listing.files:
        return (
            f"If it is a checkpoint, make an artifact of it: `pythia-export plan {listing.repo}` says what a recipe "
            "takes, `pythia-export run RECIPE` runs it."
        )
    return "`pythia-export push` puts an artifact there."
