"""Documents out of files, local or of a hub data set, in the seed's order.

The seed shuffles within a buffer, as stream readers do: of a small file that is a full shuffle, of the Pile it is one
of its front. The buffer holds at most `BUFFER` documents and about `BUFFER_CHARS` characters. Several files are read
one after another, by name. A file of the hub that is larger than `WHOLE` is read in parts, as far as its text is
needed, unless the cache has it; a smaller one is fetched and held to its hash.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ..base.errors import SourceError
from ..base.progress import SILENT, Progress
from ..recipe import Text
from .find import Found, Opened, find_files
from .formats import read_documents
from .rows import PART, Document, Tally

BUFFER = 10_000  # documents; 60 million characters of the Pile
BUFFER_CHARS = 1 << 27


@dataclass
class Source:
    """`name` is for people. `seen` counts the documents that were read, by the part of the Pile that they name, those
    that `subsets` leaves out too; `tally` counts all rows. `begun` are the files that were read, the last perhaps in
    part."""

    name: str
    documents: Iterator[Document]
    seen: Counter[str | None] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)
    found: Found | None = None
    begun: list[Opened] = field(default_factory=list)

    def read_from(self) -> str:
        """Return `name`, with what tells the files apart that were read: their number and, of local ones, a hash."""
        if self.found is None or len(self.found.files) == 1:
            return self.name
        digest = ""
        if all(file.path is not None for file in self.begun):
            digest = f", SHA-256 {_sums(self.begun)[:12]}"
        return f"{self.name} ({len(self.begun):,} of {len(self.found.files):,} files read{digest})"


def documents_of(section: Text, progress: Progress = SILENT) -> Source:
    """Raises:
    SourceError: no such file, a name of no known kind, a malformed line (with its number), no part of the Pile named
        where parts are asked for.
    """
    found = find_files(section, progress)
    source = Source(found.name, iter(()), found=found)

    def read() -> Iterator[Document]:
        for file in found.files:
            source.begun.append(file)
            rows = read_documents(file.name, file.open, file.source, source.tally)
            yield from (row for row in rows if row.text)

    def chosen() -> Iterator[Document]:
        for document in _shuffled(read(), section.seed):
            source.seen[document.subset] += 1
            if not section.subsets or document.subset in section.subsets:
                yield document
            elif source.seen[None] == BUFFER and len(source.seen) == 1:
                raise nameless(source)

    source.documents = chosen()
    return source


def nameless(source: Source) -> SourceError:
    """Return the error for `subsets` of text whose rows do not name the parts of the Pile."""
    return SourceError(
        f"{source.name}: none of {source.seen[None]:,} documents names its part of the Pile (`meta.{PART}`, or "
        f"`{PART}`); columns: {', '.join(source.tally.columns) or 'none'}",
        hint="Leave `subsets` out, or take text in the Pile's schema.",
    )


def _sums(files: list[Opened]) -> str:
    """Return the hash of what `sha256sum` prints of these files, by their names below their folder."""
    whole = hashlib.sha256()
    for file in files:
        assert file.path is not None
        with file.path.open("rb") as f:
            whole.update(f"{hashlib.file_digest(f, 'sha256').hexdigest()}  {file.name}\n".encode())
    return whole.hexdigest()


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
