"""Which files a section means: one, all of a folder, or all that match a pattern, local or in a hub data set."""

from __future__ import annotations

import difflib
import glob
import io
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from rich.filesize import decimal

from .. import hub
from ..base.errors import SourceError
from ..base.git_lfs import require_fetched
from ..base.progress import SILENT, Progress
from ..recipe import Text
from .formats import KINDS, READ, kind_of

WHOLE = 1 << 26  # bytes: what filling the buffer takes of a compressed file, and more


@dataclass(frozen=True)
class Opened:
    """A file that has been found: `name` tells its kind, `source` is for people. `path` is None of the hub's."""

    name: str
    source: str
    open: Callable[[], IO[bytes]]
    path: Path | None = None


@dataclass(frozen=True)
class Found:
    """The files of a section, at least one, by name. `name` is for people, of all together."""

    name: str
    files: list[Opened]


def find_file(section: Text, progress: Progress = SILENT, dataset: str = "", file: str = "") -> Opened:
    """The one file of a section; `dataset` and `file` stand in for what the section does not name.

    Raises:
        SourceError: there is none, or several.
    """
    found = find_files(section, progress, dataset, file)
    if len(found.files) > 1:
        raise SourceError(f"{found.name}: {len(found.files):,} files; one was expected", hint="Name it.")
    return found.files[0]


def find_files(section: Text, progress: Progress = SILENT, dataset: str = "", file: str = "") -> Found:
    """Where the text of a section lies; `dataset` and `file` stand in for what the section does not name.

    Raises:
        SourceError: there is none, or a folder holds several kinds.
    """
    if section.path is not None:
        return _local(section.path.expanduser())
    return _on_hub(section, progress, dataset, file)


# Local files


def _local(path: Path) -> Found:
    if path.is_file():
        return Found(path.name, [_opened(path, path.name)])
    if path.is_dir():
        return Found(path.name, [_opened(path / name, name) for name in _texts_in(path)])
    _require_plain(path)
    folder = next(
        parent for parent in path.absolute().parents if parent.is_dir()
    )  # brackets in its name are no pattern
    pattern = path.absolute().relative_to(folder).as_posix()
    if not glob.has_magic(pattern):
        remote = re.match(r"[a-z]{2,}:/", str(path)) or re.search(r"/(https?|hf|s3|gs):/", str(path))
        raise SourceError(
            f"{path}: no such text file",
            hint="`path` is a local file, folder or pattern; source = 'hub' reads data sets of the hub."
            if remote
            else "In a recipe, `path` is taken from the recipe's own folder.",
        )
    matching = glob.glob(pattern, root_dir=folder, recursive=True)
    names = sorted(name for name in matching if not (folder / name).is_dir())
    for name in names:
        _require_plain(folder / name)
    if not names:
        raise SourceError(f"{path}: no file matches", hint="In a recipe, `path` is taken from the recipe's own folder.")
    return Found(pattern, [_opened(folder / name, Path(name).as_posix()) for name in names])


def _require_plain(path: Path) -> None:
    """SourceError for a name that is there and stands for no text: it would be missing in silence, or waited for."""
    if path.is_symlink() and not path.exists():
        raise SourceError(f"{path}: a link that leads nowhere", hint="Copy the file that it stood for.")
    if path.exists() and not path.is_file():
        raise SourceError(f"{path}: no plain file; one of text was expected", hint="Write the text into a file.")


def _opened(path: Path, name: str) -> Opened:
    require_fetched(path)
    return Opened(name, name, lambda: path.open("rb"), path)


def _texts_in(folder: Path) -> list[str]:
    """Return the names of its files of text, below it, all of one kind; what is hidden is left out."""
    names = [p.relative_to(folder) for p in folder.rglob("*") if not p.is_dir()]
    seen = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    texts = [name for name in seen if kind_of(name) in KINDS]
    for name in texts:
        _require_plain(folder / name)
    kinds = Counter(kind_of(name) for name in texts)
    if not texts or len(kinds) > 1:
        others = Counter(Path(name).suffix or name for name in seen)
        counted = ", ".join(f"{n:,} {kind}" for kind, n in sorted(others.items())[:8]) or "no file"
        raise SourceError(
            f"{folder}: a folder of files of one kind was expected ({READ}), found {counted}",
            hint=f"Name those that are meant by a pattern: path = '{folder.name}/*.{next(iter(kinds), 'jsonl')}'."
            if "arrow" not in {kind_of(name) for name in seen}
            else "datasets' save_to_disk wrote it? Write it by Dataset.to_parquet or to_json.",
        )
    return texts


# The hub's


def _on_hub(section: Text, progress: Progress, dataset: str, file: str) -> Found:
    repo, _, revision = (section.dataset or dataset).partition("@")
    listing = hub.list_revision(repo, revision or "main", "dataset", progress)
    name = section.file or file or _only_text(listing)
    names = [name] if name in listing.files else sorted(n for n in listing.files if fnmatchcase(n, name))
    if not names:
        near = difflib.get_close_matches(name, listing.files, n=3, cutoff=0.4) or sorted(listing.files)[:5]
        raise SourceError(f"data set {listing} has no {name}", hint=f"It has {', '.join(near)}.")
    return Found(f"{repo}/{name} at {listing.commit[:12]}", [_of_hub(listing, repo, name, progress) for name in names])


def _of_hub(listing: hub.Listing, repo: str, name: str, progress: Progress) -> Opened:
    def opened() -> IO[bytes]:
        size = listing.files[name].size or 0
        if size <= WHOLE or hub.in_cache(listing, name):
            return hub.fetch(listing, [name], progress, f"Pulling {repo}")[name].open("rb")
        progress.note(f"{repo}/{name}, {decimal(size)}: only its front is read, as far as it is needed")
        return io.BufferedReader(hub.RemoteFile(listing, name, progress), 1 << 16)

    return Opened(name, f"{repo}/{name} at {listing.commit[:12]}", opened)


def _only_text(listing: hub.Listing) -> str:
    texts = [name for name in listing.files if kind_of(name) in ("jsonl", "parquet")]
    if len(texts) != 1:
        some = ", ".join(texts[:6]) + (" ..." if len(texts) > 6 else "")
        raise SourceError(
            f"data set {listing} has {len(texts)} files of text" + (f": {some}" if texts else ""),
            hint="Name one of them by `file`, or several by a pattern."
            if texts
            else ".jsonl[.gz|.zst|.xz|.bz2] or .parquet were looked for.",
        )
    return texts[0]
