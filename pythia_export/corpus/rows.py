"""A row of text in the Pile's schema: `text`, and where it is from (`meta.pile_set_name`), as mirrors write it."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from ..base.errors import SourceError

PART = "pile_set_name"
_LONGEST_META = 1 << 12  # characters of a `meta` that is written as a string; longer ones name no part
_JSON_TYPES = {
    str: "string", bool: "boolean", int: "number", float: "number", list: "list", dict: "object", type(None): "null",
}  # fmt: skip


class Document(NamedTuple):
    """A text, and the part of the Pile that it is from, where its row says so."""

    text: str
    subset: str | None = None


@dataclass
class Tally:
    """What was read of a source: rows, those of them without text, and the columns of the first."""

    rows: int = 0
    empty: int = 0
    columns: tuple[str, ...] = ()


def document_of(row: Any, where: str, tally: Tally) -> Document:
    """Return a row's document, of text "" where it is null or empty; `tally` counts both.

    Raises:
        SourceError: no object, or its `text` is missing or no string; names its columns.
    """
    if not isinstance(row, dict):
        raise SourceError(f"{where}: an object with a string `text` was expected, found {type(row).__name__}")
    tally.rows += 1
    tally.columns = tally.columns or tuple(row)
    if "text" not in row:
        raise no_text(where, {name: _JSON_TYPES.get(type(value), "") for name, value in row.items()})
    text = row["text"]
    if text is None or text == "":
        tally.empty += 1
        return Document("")
    if not isinstance(text, str):
        raise SourceError(
            f"{where}: `text` is a {_JSON_TYPES.get(type(text), type(text).__name__)}; a string was expected"
        )
    try:
        text.encode()
    except UnicodeEncodeError as e:  # JSON can spell half of a surrogate pair, which is no character
        raise SourceError(f"{where}: `text` is not Unicode: {e.reason} at character {e.start}") from e
    return Document(text, _part(row))


def no_text(where: str, columns: dict[str, str]) -> SourceError:
    """Return the error for columns, each with its type, of which none is `text`."""
    named = ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "none"
    texts = [name for name, kind in columns.items() if "string" in kind]
    best = next((name for name in ("content", "raw_content", "body", "document") if name in texts), "")
    example = best or (texts[0] if texts else "NAME")
    return SourceError(
        f"{where}: an object with a string `text` was expected; its columns are {named}",
        hint=f"Rename the column of the text: jq -c '{{text: .{example}}}', or datasets' "
        f"rename_column({example!r}, 'text').",
    )


def _part(row: dict[str, Any]) -> str | None:
    meta = row.get("meta")
    if isinstance(meta, str):
        meta = _parsed(meta) if PART in meta and len(meta) <= _LONGEST_META else None
    elif isinstance(meta, list):  # a map of Parquet's
        meta = _pairs(meta)
    for named in (meta, row):
        found = named.get(PART) if isinstance(named, dict) else None
        if isinstance(found, str) and found:
            return found
    return None


@lru_cache(maxsize=1024)
def _parsed(meta: str) -> Any:
    """Return a `meta` that some mirrors hold as a string of JSON, others as one of Python."""
    try:
        return json.loads(meta)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in somebody's string
            return ast.literal_eval(meta)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _pairs(found: Iterable[Any]) -> dict[Any, Any] | None:
    try:
        return dict(found)
    except (TypeError, ValueError):
        return None
