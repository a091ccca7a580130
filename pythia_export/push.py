"""An artifact to the hub: its own files in one commit, then held to the hashes that the hub lists for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import hub
from .artifact import MANIFEST, Artifact
from .errors import IntegrityError, OutputError
from .progress import SILENT, Progress


@dataclass(frozen=True)
class Push:
    """What goes, or has gone where `url` is set: the commit's address. `files` are bytes by name."""

    repo: str
    files: dict[str, int]
    url: str | None
    passed: bool | None


def push(
    artifact: Path, repo: str, *, private: bool = False, dry_run: bool = False, progress: Progress = SILENT
) -> Push:
    """Upload a published artifact, its model card among its files. `dry_run` asks no hub.

    The repository is made where there is none. The token is the hub client's own (HF_TOKEN, or `hf auth login`).

    Raises:
        SourceError: no artifact, without a graph (of `quantize`), or the hub refuses.
        IntegrityError: a file that is not what its manifest says, or that the hub lists otherwise than it was sent.
        OutputError: offline.
    """
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    opened = Artifact.open(artifact)
    opened.require_graph()
    with hub.told(repo, "main"):
        validate_repo_id(repo)
    opened.check()
    described = opened.manifest["files"]
    parity = opened.parity
    files = {name: entry["size"] for name, entry in described.items()}
    files[MANIFEST] = (opened.folder / MANIFEST).stat().st_size
    going = Push(repo, files, None, None if parity is None else parity.passed)
    if dry_run:
        return going
    if hub.offline():
        raise OutputError(f"nothing can be pushed to {repo}: the hub is not asked", hint="Leave --offline out.")
    commit, url = _commit(opened, repo, private, files, progress)
    listing = hub.list_revision(repo, commit, progress=progress)
    _require_same(listing, {name: entry["sha256"] for name, entry in described.items()}, files)
    return Push(repo, files, url, going.passed)


def _commit(opened: Artifact, repo: str, private: bool, files: dict[str, int], progress: Progress) -> tuple[str, str]:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    api, source = HfApi(), opened.manifest["source"]
    operations: list[Any] = [CommitOperationAdd(name, opened.folder / name) for name in files]
    total = sum(files.values())
    with hub.told(repo, "main"), progress.track(f"Pushing to {repo}", total, "bytes") as advance:
        api.create_repo(repo, private=private, exist_ok=True)
        for operation in operations:  # a file that is there already is not sent again
            name = operation.path_in_repo
            hub.again(partial(api.preupload_lfs_files, repo, [operation]), f"{repo}/{name}", progress)
            advance(files[name])
        message = f"pythia-export: {source['name']} at {source['revision']}"
        made = hub.again(lambda: api.create_commit(repo, operations, commit_message=message), repo, progress)
    return made.oid, str(made.commit_url)


def _require_same(listing: hub.Listing, hashes: dict[str, str], files: dict[str, int]) -> None:
    for name, size in files.items():
        found = listing.files.get(name)
        wrong = found is None or found.size != size
        if found is not None and found.digest is not None and len(found.digest) == 64:  # git's own files have SHA-1s
            wrong = wrong or found.digest != hashes.get(name, found.digest)
        if wrong:
            raise IntegrityError(
                f"{listing}: {name} is not on the hub as it was sent", hint="Push again; do not use what is there now."
            )
