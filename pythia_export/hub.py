"""The hub, through its own client: what a revision holds, files fetched into the shared cache and checked, ranges read.

HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean everywhere. One listing tells commit, sizes and
hashes of all files; each fetched file is held to its hash before anybody reads it. What passes by itself (a cut
connection, 429, 500) is tried again, and each wait is told.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception

from .errors import IntegrityError, PythiaExportError, ResourceError, SourceError
from .progress import SILENT, Advance, Progress
from .suite import suggestion

Kind = Literal["model", "dataset"]
T = TypeVar("T")

ATTEMPTS = 6
UNREACHABLE_ATTEMPTS = 2  # a name that does not resolve or a refused connection seldom mends itself
LONGEST_WAIT = 310.0  # seconds: the hub counts requests in windows of five minutes
POLL_SECONDS = 0.2
_PASSING = (408, 429, 500, 502, 503, 504)
_CUT = {"ChunkedEncodingError", "RemoteProtocolError", "ReadError", "ReadTimeout", "IncompleteRead"}
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHUNK = 1 << 22


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


def home() -> Path:
    """HF_HOME: what is derived from hub files lies there, beside the hub's own cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME)


def list_revision(repo: str, revision: str, kind: Kind = "model", progress: Progress = SILENT) -> Listing:
    """One call of the API; offline none, then what the cache has of the revision.

    Raises:
        SourceError: no such repository or revision, or it cannot be read.
    """
    if offline():
        return _cached(repo, revision, kind)
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


def fetch(listing: Listing, names: Iterable[str], progress: Progress = SILENT, title: str = "") -> dict[str, Path]:
    """Where the files lie in the cache, each fetched if it was not there, and held to size and hash.

    Raises:
        SourceError: offline and not in the cache, or the hub does not give it.
        IntegrityError: its bytes are not those that the listing promises, not even when fetched again.
        ResourceError: they do not fit on the disk; nothing is fetched then.
    """
    wanted = [listing.files[name] for name in names]
    paths = {f.name: _in_cache(listing, f.name) for f in wanted}
    missing = [f for f in wanted if paths[f.name] is None]
    if missing and listing.offline:
        raise _not_cached(listing.repo, listing.revision, missing[0].name)
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
    path = _in_cache(listing, name)
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


def again(call: Callable[[], T], what: str, progress: Progress = SILENT) -> T:
    """What `call` returns. Faults that pass are tried again, after the wait that the hub asks for or a growing one."""

    def stop(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome is not None else None
        return state.attempt_number >= (ATTEMPTS if error is None or _answered(error) else UNREACHABLE_ATTEMPTS)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = None if error is None else _asked_to_wait(error)
        return min(LONGEST_WAIT, 0.5 * 2**state.attempt_number if asked is None else asked)

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        seconds = state.next_action.sleep if state.next_action is not None else 0
        progress.note(f"{what}: {_first_line(error)}; trying again in {seconds:.0f} s")

    retrying = Retrying(retry=retry_if_exception(_passes), stop=stop, wait=wait, before_sleep=tell, reraise=True)
    return retrying(call)


@contextmanager
def told(repo: str, revision: str) -> Iterator[None]:
    """What the client raises, as errors of ours that say what to do."""
    try:
        yield
    except PythiaExportError:
        raise
    except Exception as e:  # the client raises requests' errors or httpx's, by its version
        if isinstance(e, OSError) and e.errno in _NO_SPACE:
            raise ResourceError(
                f"{repo} at {revision}: no space left for the download ({_first_line(e)})",
                hint="Free disk space, or point HF_HOME at a larger disk. What came so far is kept and resumed.",
            ) from e
        if isinstance(e, OSError) and isinstance(e.filename, str):
            raise SourceError(
                f"{repo} at {revision}: the cache cannot be used: {e.strerror}: {e.filename}",
                hint="Mend its permissions, or point HF_HOME at another folder.",
            ) from e
        raise SourceError(f"{repo} at {revision}: {_problem(e)}", hint=_hint(e, repo)) from e


def _in_cache(listing: Listing, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(listing.repo, name, revision=listing.commit, repo_type=listing.kind)
    return Path(found) if isinstance(found, str) else None


def _cached(repo: str, revision: str, kind: Kind) -> Listing:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    with told(repo, revision):
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=kind)
        ref = folder / "refs" / revision
        commit = ref.read_text().strip() if ref.is_file() else revision
        snapshot = folder / "snapshots" / commit
        if not re.fullmatch(r"[0-9a-f]{40}", commit) or not snapshot.is_dir():
            raise _not_cached(repo, revision, "it")
        files = {}
        for path in sorted(p for p in snapshot.rglob("*") if p.is_file()):
            name = path.relative_to(snapshot).as_posix()
            blob = path.resolve().name  # the cache calls a blob by its hash; copies, where links cannot be, by name
            digest = blob if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob) else None
            files[name] = HubFile(name, path.stat().st_size, digest)
    return Listing(repo, kind, revision, commit, files, True)


def _not_cached(repo: str, revision: str, what: str) -> SourceError:
    return SourceError(
        f"{repo} at {revision} is not in the cache ({what} is missing), and the hub is not asked",
        hint="Pull it once without --offline and HF_HUB_OFFLINE.",
    )


def _require_space(listing: Listing, missing: list[HubFile]) -> None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    partial = (_blob(listing, f).with_name(f"{f.digest}.incomplete") for f in missing if f.digest)
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
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=listing.repo, repo_type=listing.kind)
    return Path(constants.HF_HUB_CACHE) / folder / "blobs" / (file.digest or "unknown")


def _download(listing: Listing, file: HubFile, advance: Advance, progress: Progress, force: bool = False) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    # By its name first: the cache then remembers which commit the name stood for, and offline runs find it.
    revision = listing.commit if _name_is_known(listing) else listing.revision

    def get() -> str:
        return hf_hub_download(listing.repo, file.name, revision=revision, repo_type=listing.kind, force_download=force)

    with told(listing.repo, listing.revision), _watched(_blob(listing, file), file.size or 0, advance):
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
    """Advance by what the client writes. It draws bars of its own or none: the file that it fills is looked at."""
    incomplete, done, counted = blob.with_name(blob.name + ".incomplete"), threading.Event(), 0

    def look() -> None:
        nonlocal counted
        while not done.wait(POLL_SECONDS):
            try:
                now = min(incomplete.stat().st_size, size)
            except OSError:
                continue
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


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    return next((status for e in _chain(error) if (status := _own_status(e)) is not None), None)


def _own_status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _cut(error: BaseException) -> bool:
    """A connection that broke after it had been made, or a body that ended too early."""
    return any(type(e).__name__ in _CUT or "Consistency check failed" in str(e) for e in _chain(error))


def _answered(error: BaseException) -> bool:
    return _status(error) is not None or _cut(error)


def _passes(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status in _PASSING
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return False
    names = {base.__name__ for e in _chain(error) for base in type(e).__mro__}
    return _cut(error) or bool(names & {"ConnectionError", "Timeout", "TransportError"})


def _asked_to_wait(error: BaseException) -> float | None:
    """Seconds that a 429 or 503 names: `Retry-After`, or the `t=` of the hub's `RateLimit`."""
    for e in _chain(error):
        headers = getattr(getattr(e, "response", None), "headers", None)
        if headers is None:
            continue
        named = re.fullmatch(r"\s*(\d+)\s*", headers.get("Retry-After", "")) or re.search(
            r"\bt=(\d+)", headers.get("RateLimit", "")
        )
        if named:
            return float(named[1])
    return None


def _problem(error: Exception) -> str:
    names = {
        "RepositoryNotFoundError": "no such repository, or it is private",
        "RevisionNotFoundError": "no such revision",
        "EntryNotFoundError": "a file is missing",
        "RemoteEntryNotFoundError": "a file is missing",
        "GatedRepoError": "access must be requested",
    }
    known = next((names[type(e).__name__] for e in _chain(error) if type(e).__name__ in names), None)
    return f"{known} ({_first_line(error)})" if known else f"the hub cannot be read: {_first_line(error)}"


def _hint(error: Exception, repo: str) -> str:
    kinds = {type(e).__name__ for e in _chain(error)}
    if "RevisionNotFoundError" in kinds:
        return "Pythia's training checkpoints are branches: step0, step1, step2, ... step512, step1000, ... step143000."
    if "RepositoryNotFoundError" in kinds:
        return suggestion(repo)
    return "Check the connection and HF_ENDPOINT; what was pulled before is used with --offline."


def _first_line(error: BaseException | None) -> str:
    """What the hub answered, where the client wraps it in an error of its own."""
    answer = next((e for e in _chain(error) if _own_status(e) is not None), error)
    return next(iter(str(answer).strip().splitlines()), type(answer).__name__)
