"""Whole files, fetched into the hub's own cache and held to their hashes before anybody reads them."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..base.errors import IntegrityError, ResourceError, SourceError
from ..base.progress import SILENT, Advance, Progress
from .faults import again, told
from .listing import HubFile, Listing, not_cached, repository_folder
from .partial import kept_in_part, part_of

POLL_SECONDS = 0.2
_CHUNK = 1 << 22


def fetch(listing: Listing, names: Iterable[str], progress: Progress = SILENT, title: str = "") -> dict[str, Path]:
    """Where the files lie in the cache, each fetched if it was not there, and held to size and hash.

    Raises:
        SourceError: offline and not in the cache, or the hub does not give it.
        IntegrityError: its bytes are not those that the listing promises, not even when fetched again.
        ResourceError: they do not fit on the disk; nothing is fetched then.
    """
    wanted = [listing.files[name] for name in names]
    paths = {f.name: in_cache(listing, f.name) for f in wanted}
    missing = [f for f in wanted if paths[f.name] is None]
    if missing and listing.offline:
        raise not_cached(listing.repo, listing.revision, missing[0].name)
    if not missing and wanted and not listing.offline and not _name_is_known(listing):
        _download(listing, wanted[0], lambda n: None, progress)
    if missing:
        _require_space(listing, missing)
        total = sum(f.size or 0 for f in missing)
        with progress.track(title or f"Pulling {listing.repo}", total, "bytes") as advance:
            for file in missing:
                paths[file.name] = _download(listing, file, advance, progress)
    found = {name: path for name, path in paths.items() if path is not None}
    _check(listing, wanted, found, progress)
    return found


def drop(listing: Listing, name: str) -> None:
    """Take a file out of the cache, its blob with it."""
    path = in_cache(listing, name)
    if path is not None:
        blob = path.resolve()
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)


def evict(repo: str, commit: str) -> int:
    """Take one revision out of the cache; files that other cached revisions share stay. Returns the bytes freed."""
    from huggingface_hub import scan_cache_dir

    strategy = scan_cache_dir().delete_revisions(commit)
    strategy.execute()
    return int(strategy.expected_freed_size)


def in_cache(listing: Listing, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(listing.repo, name, revision=listing.commit, repo_type=listing.kind)
    return Path(found) if isinstance(found, str) else None


def _require_space(listing: Listing, missing: list[HubFile]) -> None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    partial = (part_of(_blob(listing, f)) for f in missing if f.digest)
    needed = sum(f.size or 0 for f in missing) - sum(p.stat().st_size for p in partial if p.is_file())
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ResourceError(
            f"{listing}: {needed / 1e9:,.2f} GB are to be fetched, {folder} has {free / 1e9:,.2f} GB free",
            hint="Free disk space, or point HF_HOME at a larger disk.",
        )


def _blob(listing: Listing, file: HubFile) -> Path:
    from huggingface_hub import constants

    return (
        Path(constants.HF_HUB_CACHE)
        / repository_folder(listing.repo, listing.kind)
        / "blobs"
        / (file.digest or "unknown")
    )


def _download(listing: Listing, file: HubFile, advance: Advance, progress: Progress, force: bool = False) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    # By its name first: the cache then remembers which commit the name stood for, and offline runs find it.
    revision = listing.commit if _name_is_known(listing) else listing.revision

    blob = _blob(listing, file)

    def get() -> str:
        with nullcontext() if force else kept_in_part(listing, file, blob, progress):
            return hf_hub_download(
                listing.repo, file.name, revision=revision, repo_type=listing.kind, force_download=force
            )

    with told(listing.repo, listing.revision), _watched(blob, file.size or 0, advance):
        path = Path(again(get, f"{listing.repo}/{file.name}", progress))
    commit = path.parents[file.name.count("/")].name  # the cache keeps snapshots/<commit>/<file>
    if commit != listing.commit:
        raise SourceError(f"{listing} moved from {listing.commit} to {commit} just now", hint="Run it again.")
    return path


def _name_is_known(listing: Listing) -> bool:
    if listing.revision == listing.commit:
        return True
    try:
        ref = _blob(listing, HubFile("", 0, None)).parents[1] / "refs" / listing.revision
        return ref.read_text() == listing.commit
    except OSError:
        return False


@contextmanager
def _watched(blob: Path, size: int, advance: Advance) -> Iterator[None]:
    """Advance by what the client writes. It draws bars of its own or none: the file that it fills is looked at, which
    newer clients name by chance."""
    done, counted = threading.Event(), 0

    def look() -> None:
        nonlocal counted
        while not done.wait(POLL_SECONDS):
            try:
                now = max(path.stat().st_size for path in blob.parent.glob(f"{blob.name}*.incomplete"))
            except (OSError, ValueError):  # none yet, or none any more
                continue
            now = min(now, size)
            if now > counted:
                advance(now - counted)
                counted = now

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    advance(size - counted)


def _check(listing: Listing, wanted: list[HubFile], found: dict[str, Path], progress: Progress) -> None:
    with told(listing.repo, listing.revision):
        total = sum(found[f.name].stat().st_size for f in wanted)
        with progress.track(f"Checking {listing.repo}", total, "bytes") as advance:
            for file in wanted:
                wrong = _wrong(found[file.name], file, advance)
                if wrong is None:
                    continue
                if listing.offline:
                    raise IntegrityError(f"{found[file.name]}: {wrong}", hint="Run it without --offline: it is mended.")
                progress.note(f"{listing.repo}/{file.name} in the cache is damaged and fetched again: {wrong}")
                drop(listing, file.name)
                found[file.name] = _download(listing, file, lambda n: None, progress, force=True)
                wrong = _wrong(found[file.name], file, lambda n: None)
                if wrong is not None:
                    drop(listing, file.name)
                    raise IntegrityError(
                        f"{listing}: the hub sent a {file.name} that is not the listed one: {wrong}",
                        hint="Try again later; a proxy or a mirror (HF_ENDPOINT) may change what it passes on.",
                    )


def _wrong(path: Path, file: HubFile, advance: Advance) -> str | None:
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        advance(size)
        return f"{size:,} bytes, {file.size:,} were expected"
    if file.digest is None:
        advance(size)
        return None
    digest = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1(f"blob {size}\0".encode())
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    found = digest.hexdigest()
    return None if found == file.digest else f"its hash is {found[:16]}, {file.digest[:16]} was expected"
