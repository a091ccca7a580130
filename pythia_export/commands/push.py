"""An artifact to the hub: its own files in one commit, then held to the hashes that the hub lists for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .. import hub
from ..artifact import MANIFEST, Artifact
from ..artifact.signature import SIGNATURE, is_of, sign
from ..base.errors import IntegrityError, OutputError, RecipeError, SourceError
from ..base.progress import SILENT, Progress
from ..records.quantization import QUANTIZATION
from ..runtime import check_runnable
from .whereabouts import is_path

# Keys that a path stood under in some version, of ours and of tokenizers'.
_PLACES = {"name", "path", "adapter", "source", "name_or_path", "tokenizer_file", "special_tokens_map_file"}


@dataclass(frozen=True)
class Push:
    """What goes, or has gone where `url` is set: the commit's address. `files` are bytes by name."""

    repo: str
    files: dict[str, int]
    url: str | None
    passed: bool | None


KEYLESS = "keyless"


def push(
    artifact: Path,
    repo: str,
    *,
    private: bool = False,
    sign_with: Path | str | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> Push:
    """Upload a published artifact, its model card among its files. `dry_run` asks no hub and signs nothing.

    The repository is made where there is none. The token is the hub client's own (HF_TOKEN, or `hf auth login`).
    sign_with: a private key's file, or `keyless`: `model.sig` is made before and sent along. Without it, a `model.sig`
        of other bytes that the repository has goes in the same commit: it would vouch for what is no longer there.

    Raises:
        SourceError: no artifact, without a graph (of `quantize`), or the hub refuses.
        IntegrityError: a file that is not what its manifest says, or that the hub lists otherwise than it was sent;
            a record that lies; what `generate` would refuse: a foreign graph, an end token that the model lacks, a
            broken tokenizer.
        RecipeError: `repo` is not OWNER/NAME.
        OutputError: offline, or a record names a path of the machine that the artifact was made on.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]

    if repo.count("/") != 1 or not all(repo.split("/")):
        raise RecipeError(f"{repo!r} is no repository of the hub: OWNER/NAME was expected")
    try:
        validate_repo_id(repo)
    except HFValidationError as e:
        raise RecipeError(f"{repo!r} is no repository of the hub: OWNER/NAME was expected", hint=str(e)) from e
    opened = Artifact.open(artifact)
    opened.require_graph()
    opened.check()
    check_runnable(opened)  # whoever fetches it is refused otherwise
    if QUANTIZATION in opened.manifest.files:
        _ = opened.quantization
    _require_no_paths(opened)
    described = opened.manifest.files
    parity = opened.parity
    files = {name: entry.size for name, entry in described.items()}
    files[MANIFEST] = (opened.folder / MANIFEST).stat().st_size
    if sign_with is not None and not dry_run:
        opened.require_writable()
        files[SIGNATURE] = sign(opened, None if sign_with == KEYLESS else Path(sign_with)).stat().st_size
    going = Push(repo, files, None, None if parity is None else parity.passed)
    if dry_run:
        return going
    if hub.offline():
        raise OutputError(
            f"nothing can be pushed to {repo}: the hub is not asked", hint="Leave out --offline, and HF_HUB_OFFLINE."
        )
    commit, url = _commit(opened, repo, private, files, progress)
    try:
        listing = hub.list_revision(repo, commit, progress=progress)
        _require_same(listing, {name: entry.sha256 for name, entry in described.items()}, files)
    except (SourceError, IntegrityError) as e:
        hint = "The commit is there. Pushing again sends what is missing, and checks it anew."
        raise type(e)(f"{url} was made, but its check failed: {e}", hint=hint) from e
    return Push(repo, files, url, going.passed)


def _require_no_paths(opened: Artifact) -> None:
    """What earlier versions wrote, or was changed by hand: a path has people's and machines' names in it."""
    records = {MANIFEST: {k: v for k, v in opened.manifest.to_json().items() if k != "files"}}
    names = [name for name in ("parity.json", "tokenizer_config.json") if name in opened.manifest.files]
    records |= {name: opened.read_json(name) for name in names}
    for name, record in records.items():
        for place, text in _strings(record):
            if is_path(text) and len(text) > 1 and place.rpartition(".")[2] in _PLACES:
                raise OutputError(
                    f"{opened.folder / name} has a path of the machine that it was made on: {place} is {text!r}",
                    hint=f"`pythia-export export {opened.folder} --out NEW`, then `verify NEW`, make it again with "
                    "names and hashes alone.",
                )


def _strings(record: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a record, and the key that it is under."""
    if isinstance(record, str):
        yield place, record
    elif isinstance(record, dict):
        for key, value in record.items():
            yield from _strings(value, f"{place}.{key}" if place else key)
    elif isinstance(record, list):
        for value in record:
            yield from _strings(value, place)


def _commit(opened: Artifact, repo: str, private: bool, files: dict[str, int], progress: Progress) -> tuple[str, str]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    api, source = HfApi(), opened.manifest.source
    operations: list[Any] = [CommitOperationAdd(name, opened.folder / name) for name in files]
    total = sum(files.values())
    with hub.told(repo, "main", writing=True), progress.track(f"Pushing to {repo}", total, "bytes") as advance:
        api.create_repo(repo, private=private, exist_ok=True)
        if SIGNATURE not in files and _has_other_signature(opened, repo, progress):
            operations.append(CommitOperationDelete(SIGNATURE))
            progress.note(
                f"{repo} has a {SIGNATURE} of other bytes: this commit removes it. --sign signs what it sends"
            )
        for name, operation in zip(files, operations, strict=False):  # a file that is there already is not sent again
            hub.again(partial(api.preupload_lfs_files, repo, [operation]), f"{repo}/{name}", progress)
            advance(files[name])
        opened.require_unchanged()  # what was checked is what is sent
        message = f"pythia-export: {source.name} at {source.revision}"
        made = hub.again(lambda: api.create_commit(repo, operations, commit_message=message), repo, progress)
    return made.oid, str(made.commit_url)


def _has_other_signature(opened: Artifact, repo: str, progress: Progress) -> bool:
    listing = hub.list_revision(repo, "main", progress=progress)
    if SIGNATURE not in listing.files:
        return False
    return not is_of(hub.fetch(listing, [SIGNATURE], progress)[SIGNATURE], opened)


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
