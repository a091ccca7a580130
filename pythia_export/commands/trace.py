"""`trace`: values from inside the model, of every text of a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..api import Artifact
from ..base.errors import SourceError
from ..base.progress import SILENT, Progress
from ..corpus.find import find_files
from ..corpus.formats import read_documents
from ..corpus.rows import Tally
from ..recipe import Text
from ..runtime.change import Spec, inputs_of
from ..runtime.taps import Positions
from ..trace import Dtype, Traces


def trace(
    folder: Path,
    texts: Path,
    capture: Sequence[str],
    out: Path,
    *,
    positions: Positions = "all",
    intervene: Mapping[str, Spec] | None = None,
    dtype: Dtype = "float32",
    progress: Progress = SILENT,
) -> Traces:
    """Write what is captured of each document of a file; one longer than the context is cut into windows of it.

    `intervene` are changes by place, as `Artifact.trace` takes them. One that changes nothing captured is told.

    Raises:
        SourceError: no such text, or one without documents; the artifact has no taps.
        And as `Artifact.trace_to`.
    """
    artifact = Artifact.open(folder)
    session = artifact.tapped(capture, tuple(intervene or ()))  # before the text is read
    for hook in session.changed:
        if not set(inputs_of(hook)) & set(session.settable):
            progress.note(f"{hook} comes after every place that is captured: changing it changes nothing here.")
    windows = list(_windows(artifact, texts, progress))
    if not windows:
        raise SourceError(f"{texts}: no text", hint="A file of texts was expected: .txt, .jsonl, .json or .parquet.")
    return artifact.trace_to(
        out, windows, capture, positions=positions, intervene=intervene, dtype=dtype, progress=progress
    )


def _windows(artifact: Artifact, texts: Path, progress: Progress) -> Iterator[np.ndarray]:
    """Token ids of each document, in the order of the file."""
    tokenizer, longest = artifact.tokenizer(), artifact.config.max_positions
    cut = 0
    for file in find_files(Text(source="file", path=texts), progress).files:
        for document in read_documents(file.name, file.open, file.source, Tally()):
            ids = np.array(tokenizer.encode(document.text).ids, np.int64)
            cut += len(ids) > longest
            yield from (ids[at : at + longest] for at in range(0, len(ids), longest))
    if cut:
        progress.note(f"{cut:,} documents are longer than the context and were cut into windows of {longest:,} tokens.")
