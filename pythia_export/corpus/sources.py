"""Documents out of files, local or of a hub data set: .jsonl in the Pile's schema or .txt, plain, .gz or .zst.

A file may be larger than memory and is read front to back. The seed shuffles within a buffer of `BUFFER` documents, as
stream readers do: of a small file that is a full shuffle, of the Pile it is one of its front.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import zstandard

from ..errors import IntegrityError, SourceError
from ..recipe import Text

BUFFER = 10_000


def documents_of(section: Text) -> tuple[str, Iterator[str]]:
    """A line for people that names the source, and its documents in the seed's order.

    Raises:
        SourceError: no such file, a name of no known kind, a malformed line (with its number).
    """
    if section.source == "hub":
        assert section.dataset is not None and section.file is not None
        path, source = _from_hub(section.dataset, section.file), f"{section.dataset}/{section.file}"
    else:
        assert section.path is not None
        path, source = section.path, section.path.name
        if not path.is_file():
            raise SourceError(f"{path}: no such text file", hint="`path` is taken from the recipe's own folder.")
    return source, _shuffled(_read(path, source), section.seed)


def _shuffled(texts: Iterator[str], seed: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    buffer: list[str] = []
    for text in texts:
        if len(buffer) < BUFFER:
            buffer.append(text)
            continue
        i = int(rng.integers(BUFFER))
        out, buffer[i] = buffer[i], text
        yield out
    for i in rng.permutation(len(buffer)):
        yield buffer[i]


def _read(path: Path, source: str) -> Iterator[str]:
    kind = source.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    if kind not in ("jsonl", "txt"):
        raise SourceError(f"{source}: .jsonl or .txt was expected, either plain, .gz or .zst")
    try:
        with _decompressed(path, source) as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8")
            if kind == "txt":
                yield text.read()
                return
            for number, line in enumerate(text, 1):
                if line.strip():
                    yield _text_of(line, f"{source}, line {number}")
    except (OSError, EOFError, UnicodeDecodeError, zstandard.ZstdError) as e:
        raise IntegrityError(f"{path}: cannot be read to its end: {e}", hint="Fetch or copy the file again.") from e


def _text_of(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as e:
        raise SourceError(f"{where}: not JSON: {e}") from e
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise SourceError(f"{where}: an object with a string `text` was expected, found {found}")
    text: str = row["text"]
    return text


@contextmanager
def _decompressed(path: Path, source: str) -> Iterator[IO[bytes]]:
    if source.endswith(".gz"):
        with gzip.open(path, "rb") as f:
            yield f  # type: ignore[misc]
    elif source.endswith(".zst"):
        with zstandard.open(path, "rb") as f:
            yield f
    else:
        with path.open("rb") as f:
            yield f


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
