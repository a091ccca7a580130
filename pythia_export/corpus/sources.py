"""Documents out of files, local or of a hub data set: .jsonl in the Pile's schema or .txt, plain, .gz or .zst.

A file may be larger than memory and is read front to back, no further than its text is asked for. The seed shuffles
within a buffer, as stream readers do: of a small file that is a full shuffle, of the Pile it is one of its front. The
buffer holds at most `BUFFER` documents and about `BUFFER_CHARS` characters. A .txt is one document; one longer than
`PIECE` characters is several, cut at line ends.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import zstandard

from ..errors import IntegrityError, SourceError
from ..recipe import Text

BUFFER = 10_000  # documents; 60 million characters of the Pile
BUFFER_CHARS = 1 << 27
PIECE = 1 << 24


class Document(NamedTuple):
    """A text, and the part of the Pile that it is from, where its line says so (`meta.pile_set_name`)."""

    text: str
    subset: str | None = None


def documents_of(section: Text) -> tuple[str, Iterator[Document]]:
    """A line for people that names the source, and its documents in the seed's order.

    Raises:
        SourceError: no such file, a name of no known kind, a malformed line (with its number).
    """
    if section.source == "hub":
        assert section.dataset is not None and section.file is not None
        path = _from_hub(section.dataset, section.file)
        commit = path.parents[section.file.count("/")].name  # the cache keeps snapshots/<commit>/<file>
        source = f"{section.dataset}/{section.file} at {commit[:12]}"
        return source, _shuffled(_read(path, section.file, source), section.seed)
    assert section.path is not None
    path = section.path
    if not path.is_file():
        raise SourceError(f"{path}: no such text file", hint="`path` is taken from the recipe's own folder.")
    return path.name, _shuffled(_read(path, path.name, path.name), section.seed)


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


def _read(path: Path, name: str, source: str) -> Iterator[Document]:
    """`path` may be a blob of the hub's cache: `name` tells the kind. `source` is for people."""
    kind = name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    if kind not in ("jsonl", "txt"):
        raise SourceError(f"{source}: .jsonl or .txt was expected, either plain, .gz or .zst")
    try:
        with _decompressed(path, name) as stream:
            # newline: a .txt keeps its own line ends
            text = io.TextIOWrapper(stream, encoding="utf-8", newline="\n")
            if kind == "txt":
                while piece := text.read(PIECE):
                    yield Document(piece + text.readline(PIECE))
                return
            for number, line in enumerate(text, 1):
                if line.strip():
                    yield _document(line, f"{source}, line {number}")
    except (OSError, EOFError, zlib.error, zstandard.ZstdError, UnicodeDecodeError) as e:
        raise IntegrityError(f"{path}: cannot be read to its end: {e}", hint="Fetch or copy the file again.") from e


def _document(line: str, where: str) -> Document:
    try:
        row = json.loads(line)
    except ValueError as e:
        raise SourceError(f"{where}: not JSON: {e}") from e
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise SourceError(f"{where}: an object with a string `text` was expected, found {found}")
    text: str = row["text"]
    try:
        text.encode()
    except UnicodeEncodeError as e:  # JSON can spell half of a surrogate pair, which is no character
        raise SourceError(f"{where}: `text` is not Unicode: {e.reason} at character {e.start}") from e
    meta = row.get("meta")
    subset = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return Document(text, subset if isinstance(subset, str) and subset else None)


@contextmanager
def _decompressed(path: Path, name: str) -> Iterator[IO[bytes]]:
    if name.endswith(".gz"):
        with gzip.open(path, "rb") as f:
            yield f  # type: ignore[misc]
    elif name.endswith(".zst"):
        with io.BufferedReader(_Frames(path)) as f:
            yield f
    else:
        with path.open("rb") as f:
            yield f


class _Frames(io.RawIOBase):
    """A decompressed .zst: zstandard's own reader takes the place where a file was cut for its end."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame: Any = None  # until the first byte; a file may have several frames
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            packed = packed or self._file.read(1 << 16)
            if not packed:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the file ends inside a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = self._frame.decompress(packed)
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n

    def close(self) -> None:
        self._file.close()
        super().close()


def _from_hub(dataset: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(dataset, file, repo_type="dataset"))
    except Exception as e:
        first = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise SourceError(
            f"data set {dataset}, file {file}: cannot be fetched: {first}",
            hint="Check the names, the connection, HF_ENDPOINT and HF_HUB_OFFLINE; or use source = 'file'.",
        ) from e
