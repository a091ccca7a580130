"""Documents out of a file, local or of a hub data set, in the seed's order.

The seed shuffles within a buffer, as stream readers do: of a small file that is a full shuffle, of the Pile it is one
of its front. The buffer holds at most `BUFFER` documents and about `BUFFER_CHARS` characters. A file of the hub that is
larger than `WHOLE` is read in parts, as far as its text is needed, unless the cache has it; a smaller one is fetched
and held to its hash.
"""

from __future__ import annotations

import difflib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

import numpy as np
from rich.filesize import decimal

from .. import hub
from ..errors import SourceError
from ..progress import SILENT, Progress
from ..recipe import Text
from .formats import Document, kind_of, read_documents

BUFFER = 10_000  # documents; 60 million characters of the Pile
BUFFER_CHARS = 1 << 27
WHOLE = 1 << 26  # bytes: what filling the buffer takes of a compressed file, and more


@dataclass(frozen=True)
class Source:
    """`name` is for people. `seen` counts the documents that were read, by the part of the Pile that they name, those
    that `subsets` leaves out too."""

    name: str
    documents: Iterator[Document]
    seen: Counter[str | None] = field(default_factory=Counter)


@dataclass(frozen=True)
class Opened:
    """A file that has been found: `name` tells its kind, `source` is for people."""

    name: str
    source: str
    open: Callable[[], IO[bytes]]


def documents_of(section: Text, progress: Progress = SILENT) -> Source:
    """Raises:
    SourceError: no such file, a name of no known kind, a malformed line (with its number).
    """
    file = find_file(section, progress)
    seen: Counter[str | None] = Counter()
    shuffled = _shuffled(read_documents(file.name, file.open, file.source), section.seed)

    def chosen() -> Iterator[Document]:
        for document in shuffled:
            seen[document.subset] += 1
            if not section.subsets or document.subset in section.subsets:
                yield document

    return Source(file.source, chosen(), seen)


def find_file(section: Text, progress: Progress = SILENT, dataset: str = "", file: str = "") -> Opened:
    """Where the text of a section lies; `dataset` and `file` stand in for what the section does not name."""
    if section.path is not None:
        path = section.path
        if not path.is_file():
            raise SourceError(f"{path}: no such text file", hint="`path` is taken from the recipe's own folder.")
        return Opened(path.name, path.name, lambda: path.open("rb"))
    repo, _, revision = (section.dataset or dataset).partition("@")
    listing = hub.list_revision(repo, revision or "main", "dataset", progress)
    name = section.file or file or _only_text(listing)
    if name not in listing.files:
        near = difflib.get_close_matches(name, listing.files, n=3, cutoff=0.4) or sorted(listing.files)[:5]
        raise SourceError(f"data set {listing} has no {name}", hint=f"It has {', '.join(near)}.")
    source = f"{repo}/{name} at {listing.commit[:12]}"
    size = listing.files[name].size or 0
    if size <= WHOLE or hub.in_cache(listing, name):
        path = hub.fetch(listing, [name], progress, f"Pulling {repo}")[name]
        return Opened(name, source, lambda: path.open("rb"))
    progress.note(f"{repo}/{name}, {decimal(size)}: only its front is read, as far as it is needed")
    return Opened(name, source, lambda: io.BufferedReader(hub.RemoteFile(listing, name, progress), 1 << 16))


def _only_text(listing: hub.Listing) -> str:
    texts = [name for name in listing.files if kind_of(name) in ("jsonl", "parquet")]
    if len(texts) != 1:
        some = ", ".join(texts[:6]) + (" ..." if len(texts) > 6 else "")
        raise SourceError(
            f"data set {listing} has {len(texts)} files of text" + (f": {some}" if texts else ""),
            hint="Name one of them by `file`." if texts else ".jsonl[.gz|.zst] or .parquet were looked for.",
        )
    return texts[0]


def _shuffled(documents: Iterator[Document], seed: int) -> Iterator[Document]:
    rng = np.random.default_rng(seed)
    buffer: list[Document] = []
    held = 0  # characters
    for document in documents:
        buffer.append(document)
        held += len(document.text)
        while len(buffer) > BUFFER or held > BUFFER_CHARS:
            i = int(rng.integers(len(buffer)))
            buffer[i], buffer[-1] = buffer[-1], buffer[i]
            out = buffer.pop()
            held -= len(out.text)
            yield out
    for i in rng.permutation(len(buffer)):
        yield buffer[i]
