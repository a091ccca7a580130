"""Two questions, never mixed.

A. Did the export keep the numbers? ONNX Runtime against torch on the *same* dequantised weights, at accuracy level 0
   and, where another one ships, at that: a few windows in one pass, one window again token by token over the cache.
B. What did quantisation cost? The artifact as it ships against the original checkpoint, on held-out text.

Logits exist for one window at a time; of a corpus only per-token figures are kept.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..corpus import Windows
from ..errors import NumericsError
from ..graph.decoder import kv_cache, with_accuracy_level
from ..machine import machine, versions
from ..neox import NeoXConfig
from ..progress import SILENT, Progress
from ..recipe import Export, Gates
from ..runtime import Session
from .gates import judge
from .metrics import ExportDifference, TokenFigures
from .reference import Reference, Tensors
from .statistics import summarise

EXPORT_WINDOWS = 8
DECODE_TOKENS = 128


def prove(
    original: Tensors,
    stored: Tensors,
    config: NeoXConfig,
    model: onnx.ModelProto,
    folder: Path,
    export: Export,
    windows: Windows,
    gates: Gates,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure an artifact and judge it by the recipe's gates; returns the content of `parity.json`.

    `folder` holds the weights that `model` names; the artifact need not be published.

    Raises:
        NumericsError: the graph computes a NaN or an infinity.
    """
    began = time.perf_counter()

    def session(level: int, native: bool = True) -> Session:
        graph = model if level == export.accuracy_level else with_accuracy_level(model, level)
        return Session(
            graph.SerializeToString(), folder, config, kv_cache=kv_cache(export), kv_dtype=export.cache_dtype,
            provider="cuda" if export.target == "cuda" else "cpu", native=native,
        )  # fmt: skip

    some = windows.ids[:EXPORT_WINDOWS]
    reference = Reference(stored, config, some, "Reference on the artifact's weights", progress)
    portable = session(0, native=False)
    kept: dict[str, Any] = {"accuracy_level": 0, "tokens": int(some.size)} | _export(
        portable, reference, some, progress
    )
    shipped = session(export.accuracy_level)
    kept |= {"speed": shipped.speed, "why": shipped.why}
    kept["native"] = None
    if shipped.speed == "native":
        exact = session(0) if export.accuracy_level else shipped
        kept["native"] = _export(exact, reference, some, progress)
    if export.accuracy_level:
        kept["shipped"] = {"accuracy_level": export.accuracy_level} | _export(shipped, reference, some, progress)
    else:
        kept["shipped"] = None
    del reference
    cost = _cost(original, shipped, config, windows, progress)
    parity = {
        "schema": 1,
        "versions": versions(),
        "machine": machine(),
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "corpus": {
            "source": windows.source,
            "sha256": windows.sha256,
            "tokens": int(windows.ids.size),
            "windows": len(windows.ids),
            "sequence_length": windows.ids.shape[1],
            "n_bytes": windows.n_bytes,
        },
        "export": kept,
        "cost": cost,
    }
    verdicts = judge(gates, parity)
    passed = all(gate["passed"] for gate in verdicts)
    return parity | {"passed": passed, "gates": verdicts, "seconds": round(time.perf_counter() - began, 2)}


def _export(session: Session, reference: Reference, ids: np.ndarray, progress: Progress) -> dict[str, float]:
    """Question A for one session: prefill of every window against torch, cached decode of the first against prefill."""
    difference = ExportDifference()
    with progress.track("ONNX Runtime against torch", len(ids) + 1, "windows") as advance:
        for i, window in enumerate(ids):
            got = _finite(session.logits(window[None])[0])
            difference.add(got, reference.logits(i))
            if i == 0:
                prefill = got
            advance(1)
        short = ids[0, :DECODE_TOKENS]
        cache = session.start(1, len(short))
        steps = [session.step(cache, token.reshape(1, 1))[0] for token in short]
        decode = float(np.abs(np.concatenate(steps) - prefill[: len(short)]).max())
        advance(1)
    return difference.result() | {"decode_max_abs": decode}


def _cost(
    original: Tensors, session: Session, config: NeoXConfig, windows: Windows, progress: Progress
) -> dict[str, Any]:
    reference = Reference(original, config, windows.ids, "Original checkpoint", progress)
    figures = TokenFigures()
    with progress.track("Artifact against original", len(windows.ids), "windows") as advance:
        for i, window in enumerate(windows.ids):
            quantised = _finite(session.logits(window[None])[0])
            figures.add(reference.logits(i)[:-1], quantised[:-1], window[1:], cluster=int(windows.documents[i]))
            advance(1)
    return summarise(figures, bytes_per_token=windows.n_bytes / windows.ids.size)


def _finite(logits: np.ndarray) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise NumericsError(
            "the exported graph computes NaN or infinity on the held-out text",
            hint="With dtype = 'float16' an activation may overflow; try 'float32'.",
        )
    return logits
