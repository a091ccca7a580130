"""Bytes to documents: .jsonl in the Pile's schema or .txt, plain, .gz or .zst, and .parquet with the same columns.

A file may be larger than memory and lie on the hub: it is read front to back, no further than its text is asked for. A
.txt is one document; one longer than `PIECE` characters is several, cut at line ends.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import zstandard

from ..errors import EnvironmentProblem, IntegrityError, SourceError

PIECE = 1 << 24
KINDS = ("jsonl", "txt", "parquet")
_ROWS = 256  # of a Parquet file, held at a time


class Document(NamedTuple):
    """A text, and the part of the Pile that it is from, where its line says so (`meta.pile_set_name`)."""

    text: str
    subset: str | None = None


def kind_of(name: str) -> str:
    """What a file holds, by its name: ``jsonl`` of ``val.jsonl.zst``."""
    return name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]


def read_documents(name: str, open_file: Callable[[], IO[bytes]], source: str) -> Iterator[Document]:
    """The documents of a file. `name` tells its kind; `source` is for people.

    Raises:
        SourceError: of no known kind, or a malformed line (with its number).
        IntegrityError: it cannot be decompressed or decoded to its end.
        EnvironmentProblem: Parquet without pyarrow.
    """
    kind = kind_of(name)
    if kind not in KINDS:
        raise SourceError(f"{source}: .jsonl or .txt was expected, either plain, .gz or .zst, or .parquet")
    try:
        with open_file() as file:
            if kind == "parquet":
                yield from _rows(file, source)
                return
            with decompressed(file, name) as stream:
                # newline: a .txt keeps its own line ends
                text = io.TextIOWrapper(stream, encoding="utf-8", newline="\n")
                if kind == "txt":
                    while piece := text.read(PIECE):
                        yield Document(piece + text.readline(PIECE))
                    return
                for number, line in enumerate(text, 1):
                    if line.strip():
                        yield _document(_parsed(line, f"{source}, line {number}"), f"{source}, line {number}")
    except (OSError, EOFError, zlib.error, zstandard.ZstdError, UnicodeDecodeError) as e:
        raise IntegrityError(f"{source}: cannot be read to its end: {e}", hint="Fetch or copy the file again.") from e


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as e:
        raise SourceError(f"{where}: not JSON: {e}") from e


def _document(row: Any, where: str) -> Document:
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


def _rows(file: IO[bytes], source: str) -> Iterator[Document]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as e:
        raise EnvironmentProblem(
            f"{source} is Parquet; pyarrow, which reads it, is not installed",
            hint="pip install 'pythia-export[parquet]'",
        ) from e
    try:
        opened = parquet.ParquetFile(file)
        columns = [name for name in ("text", "meta") if name in opened.schema_arrow.names]
        number = 0
        for batch in opened.iter_batches(batch_size=_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield _document(row, f"{source}, row {number}")
    except pyarrow.ArrowException as e:
        raise IntegrityError(f"{source}: no Parquet file that can be read: {e}") from e


@contextmanager
def decompressed(file: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    """The plain bytes of a .gz, a .zst, or of any other file as they are."""
    if name.endswith(".gz"):
        with gzip.open(file, "rb") as f:
            yield f  # type: ignore[misc]
    elif name.endswith(".zst"):
        with io.BufferedReader(_Frames(file)) as f:
            yield f
    else:
        yield file


class _Frames(io.RawIOBase):
    """A decompressed .zst: zstandard's own reader takes the place where a file was cut for its end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
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
