"""Rows of a Parquet file, a few at a time; pyarrow, which reads it, is an extra."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from ..base.errors import EnvironmentProblem, IntegrityError, SourceError
from ..base.extras import install
from ..base.git_lfs import refuse_pointer
from .rows import PART, Document, Tally, document_of, no_text

_ROWS = 256  # held at a time


def parquet_rows(file: IO[bytes], source: str, tally: Tally) -> Iterator[Document]:
    """Yield the documents of a Parquet file that can be read from any place.

    Raises:
        SourceError: no column `text`, or not one of strings; names the columns with their types.
        IntegrityError: it is no Parquet file, or a damaged one.
        EnvironmentProblem: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as e:
        raise EnvironmentProblem(
            f"{source} is Parquet; pyarrow, which reads it, is not installed",
            hint=install("parquet"),
        ) from e
    try:
        try:
            opened = parquet.ParquetFile(file)
        except pyarrow.ArrowException:
            file.seek(0)
            refuse_pointer(file.read(64), source)
            raise
        schema = opened.schema_arrow
        _require_text(schema, source)
        columns = [name for name in ("text", "meta", PART) if name in schema.names]
        tally.columns, number = tuple(schema.names), 0
        for batch in opened.iter_batches(batch_size=_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield document_of(row, f"{source}, row {number}", tally)
    except pyarrow.ArrowException as e:
        raise IntegrityError(f"{source}: no Parquet file that can be read: {e}") from e


def _require_text(schema: Any, source: str) -> None:
    from pyarrow import types

    if "text" not in schema.names:
        raise no_text(source, {field.name: str(field.type) for field in schema})
    of = schema.field(schema.names.index("text")).type
    held = of.value_type if types.is_dictionary(of) else of
    # string views are of newer versions of pyarrow
    kinds = (types.is_string, types.is_large_string, types.is_null, getattr(types, "is_string_view", types.is_string))
    if not any(is_kind(held) for is_kind in kinds):
        raise SourceError(
            f"{source}: its column `text` is {of}; strings were expected",
            hint="Its columns are " + ", ".join(f"{field.name} ({field.type})" for field in schema) + ".",
        )
