"""One row a scored token, for whoever wants to look closer: a tidy Parquet file.

window, position    int32    which window, and the place in it of the token that was predicted
document            int32    counted from 0 in the order of the text
subset              string   the part of the Pile that the document names, or null
token               int32    its id
nll_original, nll_quantized, kld   float64, nats
same_top            bool     the likeliest token is the same
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import EnvironmentProblem
from ..base.extras import install
from ..corpus import Windows
from .metrics import TokenFigures


def require_parquet() -> Any:
    """pyarrow, with its Parquet module.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise EnvironmentProblem(
            "a table of tokens is written by pyarrow, which is not installed",
            hint=install("parquet"),
        ) from e
    return pyarrow


def token_table(figures: TokenFigures, windows: Windows) -> bytes:
    """The file's content, zstd-compressed; the corpus's SHA-256 is in its metadata.

    Raises:
        EnvironmentProblem: pyarrow is not installed.
    """
    arrow = require_parquet()
    count, length = windows.ids.shape[0], windows.ids.shape[1] - 1
    documents = windows.documents[:, 1:].ravel()
    names = np.full(int(documents.max()) + 1, None, object)
    for name, subset in windows.subsets.items():
        names[[d for d in subset.documents if d < len(names)]] = name
    columns = {
        "window": np.repeat(np.arange(count, dtype=np.int32), length),
        "position": np.tile(np.arange(1, length + 1, dtype=np.int32), count),
        "document": documents.astype(np.int32),
        "subset": arrow.array(names, arrow.string()).take(arrow.array(documents)),
        "token": windows.ids[:, 1:].ravel().astype(np.int32),
        "nll_original": figures.nll_original,
        "nll_quantized": figures.nll_quantized,
        "kld": figures.kld,
        "same_top": figures.same_top,
    }
    sink = arrow.BufferOutputStream()
    table = arrow.table(columns).replace_schema_metadata({"corpus_sha256": windows.sha256})
    arrow.parquet.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())
