"""Bytes to documents: JSON lines in the Pile's schema, an array of such objects, plain text, Parquet with such columns.

A file may be larger than memory and lie on the hub: it is read front to back, no further than its text is asked for. A
.txt is one document; one longer than `PIECE` characters is several, cut at line ends. Rows without text (null or empty)
are counted; whatever else is not as expected is an error with its line and its columns.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Callable, Iterator
from typing import IO, Any

from ..base.errors import IntegrityError, ResourceError, SourceError
from ..base.git_lfs import refuse_pointer
from .compression import FAULTS, SUFFIXES, decompressed
from .parquet import parquet_rows
from .rows import Document, Tally, document_of

PIECE = 1 << 24
LONGEST = 1 << 29  # bytes of a line, which is held whole
KINDS = ("jsonl", "ndjson", "json", "txt", "parquet")
READ = ".jsonl, .json, .txt or .parquet, plain or packed (.gz, .zst, .xz, .bz2)"
_CHUNK = 1 << 20  # characters of a JSON array, read at a time
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
          codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
_ELSEWHERE = {
    "csv": "Write each row as a line of .jsonl: {\"text\": \"...\"}; pandas: read_csv(...).to_json(lines=True, "
    "orient='records').",
    "arrow": "It is of datasets' save_to_disk; write it by Dataset.to_parquet or to_json.",
}  # fmt: skip
_ELSEWHERE["tsv"] = _ELSEWHERE["csv"].replace("read_csv(...)", "read_csv(..., sep='\\t')")


def kind_of(name: str) -> str:
    """What a file holds, by its name: ``jsonl`` of ``val.jsonl.zst``."""
    name = name.lower()
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name.rpartition(".")[2]


def read_documents(
    name: str, open_file: Callable[[], IO[bytes]], source: str, tally: Tally | None = None
) -> Iterator[Document]:
    """Yield the documents of a file. `name` tells its kind; `source` is for people; `tally` counts its rows.

    Raises:
        SourceError: of no known kind, or a malformed line (with its number).
        IntegrityError: it cannot be decompressed or decoded to its end.
        EnvironmentProblem: Parquet without pyarrow.
        ResourceError: a .zst whose window does not fit in memory.
    """
    kind, tally = kind_of(name), tally or Tally()
    if kind not in KINDS:
        raise SourceError(f"{source}: {READ} was expected", hint=_ELSEWHERE.get(kind, ""))
    try:
        with open_file() as file:
            if kind == "parquet":
                yield from parquet_rows(file, source, tally)
                return
            stream = decompressed(file, source)
            head = stream.peek(64)
            refuse_pointer(head, source)
            if head.startswith(b"PAR1") and stream.seekable():
                yield from parquet_rows(stream, source, tally)
            elif head.startswith(b"ARROW1"):
                raise SourceError(f"{source} is an Arrow file; {READ} was expected", hint=_ELSEWHERE["arrow"])
            elif kind == "txt":
                yield from _plain(stream, tally)
            else:
                yield from _json(stream, source, tally)
    except UnicodeDecodeError as e:
        raise IntegrityError(
            f"{source}: cannot be read to its end: {e}",
            hint="Text is read as UTF-8, or as UTF-16 or 32 with a byte order mark; iconv converts others.",
        ) from e
    except FAULTS as e:
        if "llocation" in str(e):  # zstandard has no exception of its own for it
            raise ResourceError(
                f"{source}: its window does not fit in memory: {e}", hint="Pack it again without --long."
            ) from e
        raise IntegrityError(f"{source}: cannot be read to its end: {e}", hint="Fetch or copy the file again.") from e


def _encoding(stream: io.BufferedReader) -> str:
    head = stream.peek(4)[:4]
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")


def _plain(stream: io.BufferedReader, tally: Tally) -> Iterator[Document]:
    # newline: a .txt keeps its own line ends
    text = io.TextIOWrapper(stream, encoding=_encoding(stream), newline="\n")
    while piece := text.read(PIECE):
        tally.rows += 1
        yield Document(piece + text.readline(PIECE))


def _json(stream: io.BufferedReader, source: str, tally: Tally) -> Iterator[Document]:
    encoding = _encoding(stream)
    start = stream.peek(512)[:512].decode(encoding, "ignore").lstrip("\ufeff \t\r\n")
    if start.startswith("["):
        values = _items(io.TextIOWrapper(stream, encoding=encoding), source)
    elif encoding.startswith("utf-8"):
        values = _lines(_decoded(stream, source), source)
    else:
        values = _lines(io.TextIOWrapper(stream, encoding=encoding, newline="\n"), source)
    for where, value in values:
        yield document_of(value, where, tally)


def _decoded(stream: io.BufferedReader, source: str) -> Iterator[str]:
    """Yield UTF-8 lines, so that what is none is told with its number."""
    number = 0
    while line := stream.readline(LONGEST):
        number += 1
        if len(line) == LONGEST and not line.endswith(b"\n"):
            raise SourceError(f"{source}, line {number}: longer than {LONGEST:,} bytes", hint="Cut the document.")
        try:
            yield line.decode()
        except UnicodeDecodeError as e:
            raise IntegrityError(
                f"{source}, line {number}: not UTF-8: {e.reason} at byte {e.start}",
                hint="iconv -f latin1 -t utf-8, or whichever encoding it has, makes it so.",
            ) from e


def _lines(lines: Iterator[str], source: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, 1):
        line = line.lstrip("\ufeff")  # where files that begin with a mark were joined, one is inside
        if line.strip():
            where = f"{source}, line {number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as e:
                raise SourceError(f"{where}: not JSON: {e}", hint="A line holds one object, whole.") from e


def _items(text: io.TextIOWrapper, source: str) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a JSON array, of which a chunk or the longest element is held."""
    decoder, number = json.JSONDecoder(), 0
    buffer = text.read(_CHUNK).lstrip("\ufeff \t\r\n")[1:]
    while True:
        buffer = buffer.lstrip(" \t\r\n,")
        if buffer.startswith("]"):
            return
        where = f"{source}, element {number + 1}"
        try:
            value, end = decoder.raw_decode(buffer)
        except (ValueError, RecursionError) as e:
            more = text.read(max(_CHUNK, len(buffer)))
            if not more or isinstance(e, RecursionError) or len(buffer) > LONGEST:
                raise SourceError(f"{where}: not JSON: {e}") from e
            buffer += more
            continue
        number += 1
        yield where, value
        buffer = buffer[end:]
