"""Question A: did the export keep the numbers? ONNX Runtime against torch on the same dequantised weights.

A run is one way of computing them: a graph at an accuracy level, by the function that it carries or by native kernels.
Each gives the logits of a few windows in one pass, which are held to torch's, and then some of them again by other ways
that a runtime takes, which are held to that pass:

- split: one part of a window as a prompt, then some tokens one by one over the cache, then the rest at once;
- batch: the starts of several windows together, or shifted slices where there is one window;
- padding: those, each padded on its left by another length, the last tokens one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..base.progress import SILENT, Progress
from ..records import parity as records
from ..records.parity import Cut
from ..runtime import Session
from .metrics import ExportDifference
from .reference import Reference

WINDOWS = 8
STEPS = 16  # tokens one by one behind each split
ROWS, COLUMNS = 4, 64  # of the batch
PADDED_STEPS = 4


@dataclass(frozen=True)
class Run:
    """`name` is for people. A gated run is held to the recipe's limits; others are shown beside it."""

    name: str
    accuracy_level: int
    gated: bool
    open: Callable[[], Session]


def splits(length: int) -> list[int]:
    """Return where a window of so many tokens is cut: nothing before, one token, a third, two thirds, all but one."""
    return sorted({0, 1, length // 3, 2 * length // 3, length - 1})


def measure(run: Run, reference: Reference, ids: np.ndarray, progress: Progress = SILENT) -> records.Run:
    """Return one entry of `runs` in parity.json; ids [N, S] int64 are what the reference was made of.

    `max_abs`, `p999_abs`, `same_top`: one pass against torch. `splits`, `batch_max_abs`, `padding_max_abs`: the other
    ways against that pass, and `decode_max_abs`, the largest of them. Differences of logits, absolute.

    Raises:
        NumericsError: the graph computes a NaN or an infinity.
    """
    session, difference = run.open(), ExportDifference()
    batch = _batch(ids)
    rows, columns = batch.shape
    starts = np.empty((rows, columns, session.config.vocab_size), np.float32)
    with progress.track(f"ONNX Runtime against torch: {run.name}", len(ids) + 3, "windows") as advance:
        for i, window in enumerate(ids):
            got = session.logits(window[None])[0]
            difference.add(got, reference.logits(i))
            if i == 0:
                whole = got
            if i < rows:
                starts[i] = got[:columns]
            advance(1)
        for row in range(len(ids), rows):  # of the only window, shifted
            starts[row] = session.logits(batch[row][None])[0]
        cuts = [Cut(at=at, max_abs=_largest(_split(session, ids[0], at) - whole)) for at in splits(ids.shape[1])]
        advance(1)
        together = _largest(session.logits(batch) - starts)
        advance(1)
        padded = _padded(session, batch, starts)
        advance(1)
    return records.Run(
        name=run.name,
        speed=session.speed,
        why=session.why,
        accuracy_level=run.accuracy_level,
        gated=run.gated,
        **difference.result(),
        splits=cuts,
        batch_max_abs=together,
        padding_max_abs=padded,
        decode_max_abs=max([together, padded, *(cut.max_abs for cut in cuts)]),
    )


def _batch(ids: np.ndarray) -> np.ndarray:
    """Rows [R, C], several in any case: a row alone is neither batched nor padded. Starts of the windows; of one window
    alone, slices that begin a token later each."""
    if len(ids) > 1:
        return np.ascontiguousarray(ids[:ROWS, :COLUMNS])
    columns = min(COLUMNS, ids.shape[1] - ROWS + 1)  # a window has 8 tokens or more
    return np.stack([ids[0, row : row + columns] for row in range(ROWS)])


def _split(session: Session, window: np.ndarray, at: int) -> np.ndarray:
    """Logits [S, vocab] of a window [S] in parts."""
    cache = session.start(1, len(window))
    steps = min(STEPS, len(window) - at)
    ends = [at, *(at + step for step in range(1, steps + 1)), len(window)]
    parts, begin = [], 0
    for end in ends:
        if end > begin:
            parts.append(session.step(cache, window[None, begin:end])[0])
            begin = end
    return np.concatenate(parts)


def _padded(session: Session, batch: np.ndarray, starts: np.ndarray) -> float:
    """Rows [R, C] shortened to different lengths and padded on the left: the first not at all, the last by half."""
    rows, columns = batch.shape
    gaps = [row * (columns // 2) // (rows - 1) for row in range(rows)]
    ids, mask = np.zeros_like(batch), np.zeros_like(batch)
    for row, gap in enumerate(gaps):
        ids[row, gap:], mask[row, gap:] = batch[row, : columns - gap], 1
    cache = session.start(rows, columns)
    begin = max(gaps[-1] + 1, columns - PADDED_STEPS)  # a prompt has a real token in every row
    ends = [begin, *range(begin + 1, columns + 1)]
    parts, at = [], 0
    for end in ends:
        parts.append(session.step(cache, ids[:, at:end].copy(), mask[:, at:end].copy()))
        at = end
    got = np.concatenate(parts, 1)
    return max(_largest(got[row, gap:] - starts[row, : columns - gap]) for row, gap in enumerate(gaps))


def _largest(difference: np.ndarray) -> float:
    return float(np.abs(difference).max())
