"""Question B: what did quantisation cost? The artifact as it ships against the original, on held-out text.

Logits exist for one window at a time; of the text only per-token figures are kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from ..base.compute import DEFAULT, Compute
from ..corpus import Windows
from ..records.parity import Corpus, Cost, Ratio, Rounding, RoundingOfBoth
from ..runtime import Session
from .metrics import TokenFigures
from .reference import Reference, Tensors, Watch
from .score import score
from .statistics import bootstrap, clustered_mean, mean_of, summarise
from .subject import Subject


def measure(
    subject: Subject, shipped: Session, windows: Windows, compute: Compute = DEFAULT, watch: Watch | None = None
) -> tuple[Cost, TokenFigures]:
    """Return the section `cost` of parity.json, and the figures of every token that it sums up. `shipped` is the
    subject's session as it ships; `watch` sees the original's passes.

    Raises:
        NumericsError: the graph, or the original, computes a NaN or an infinity.
    """
    title = f"{subject.baseline.capitalize()} checkpoint{'' if watch is None else ', and inside'}"
    reference = Reference(subject.original, subject.config, windows.ids, title, compute, watch=watch)
    in_runtime = 0.0

    def quantised(i: int) -> np.ndarray:
        nonlocal in_runtime
        began = time.perf_counter()
        logits: np.ndarray = shipped.logits(windows.ids[i : i + 1])[0]
        in_runtime += time.perf_counter() - began
        return logits

    title = f"Artifact against {subject.baseline}"
    figures = score(reference.logits, {"artifact": quantised}, windows, title, compute.progress)["artifact"]
    scored = summarise(figures, windows.n_bytes / windows.ids.size, subsets_of(windows))
    speed = round(windows.ids.size / in_runtime, 1)
    return Cost(**vars(scored), reference=reference.how, tokens_per_second=speed, rounding=None, suspects=None), figures


def measure_rounding(
    subject: Subject, nearest: Tensors, windows: Windows, compute: Compute = DEFAULT
) -> RoundingOfBoth:
    """Return the section `cost.rounding`: round-to-nearest beside what the artifact holds.

    All three in torch with activations in float, so that nothing but the weights differs. `recovered` is
    ``1 - mean / mean of RTN``, its interval a bootstrap over documents; None where RTN's own mean cannot be told from
    nothing.
    """
    sources = {"original": subject.original, "artifact": subject.stored, "rtn": nearest}
    titles = {"original": "Original checkpoint", "artifact": "Artifact's weights", "rtn": "Round to nearest"}
    references = {
        name: Reference(of, subject.config, windows.ids, titles[name], compute, together=len(sources))
        for name, of in sources.items()
    }
    others = {name: references[name].logits for name in ("artifact", "rtn")}
    scored = score(references["original"].logits, others, windows, "Rounding alone", compute.progress)
    found = {
        "delta_nll": {name: x.nll_quantized - x.nll_original for name, x in scored.items()},
        "kld": {name: x.kld for name, x in scored.items()},
    }
    clusters = windows.documents[:, 1:].ravel()
    if len(np.unique(clusters)) == 1:
        clusters = np.repeat(np.arange(len(windows.ids)), windows.ids.shape[1] - 1)
    _, index = np.unique(clusters, return_inverse=True)
    n = np.bincount(index)
    figures = {}
    for figure, values in found.items():
        estimates = {name: clustered_mean(x, clusters) for name, x in values.items()}
        saved = clustered_mean(values["rtn"] - values["artifact"], clusters)
        rtn, recovered = estimates["rtn"], None
        if rtn.low is not None and rtn.low > 0:
            totals = {name: np.bincount(index, weights=x) for name, x in values.items()}
            ends = bootstrap(n, totals["artifact"], relative_to=totals["rtn"])
            low, high = ends if ends is not None else (None, None)
            recovered = Ratio(value=1 - estimates["artifact"].value / rtn.value, low=low, high=high)
        figures[figure] = Rounding(
            artifact=mean_of(estimates["artifact"]), rtn=mean_of(rtn), saved=mean_of(saved), recovered=recovered
        )
    return RoundingOfBoth(**figures)


def corpus_of(windows: Windows) -> Corpus:
    """Return the record of a text."""
    return Corpus(
        source=windows.source,
        sha256=windows.sha256,
        tokens=int(windows.ids.size),
        windows=len(windows.ids),
        sequence_length=windows.ids.shape[1],
        n_bytes=windows.n_bytes,
        end_tokens=windows.end_tokens,
    )


def subsets_of(windows: Windows) -> Mapping[str, tuple[ArrayLike, float]]:
    """Return, for each part of the text that documents name, its documents and its bytes per token."""
    found = {}
    for name, subset in windows.subsets.items():
        tokens = int(np.isin(windows.documents, subset.documents).sum())
        if tokens:
            found[name] = (subset.documents, subset.n_bytes / tokens)
    return found
