"""The fixed scales of an int8 cache: how large keys and values get in the artifact's own graph on calibration text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..base.progress import Progress
from ..corpus import Windows
from ..graph.cache_scales import CacheScales, name_of
from ..graph.decoder import build_decoder, kv_cache
from ..model.neox import NeoXConfig
from ..recipe import Export
from ..records import manifest
from ..runtime import Session
from ..weights.layout import Layout

WINDOWS = 16  # the first of the text: their largest values are what more windows seldom exceed
# A value beyond its scale is cut off, which costs far more than coarser steps do. On the demo the KL divergence of
# such a cache from one of floats is 0.00031 nats a token without a margin, 0.00028 with 5 or 10 %, 0.00035 with 25 %,
# and 0.026 if scales are a fifth too small (benchmarks/int8_cache.py).
MARGIN = 1.1
MOST = 127


@dataclass(frozen=True)
class MeasuredScales:
    """The scales, and what the manifest says of them."""

    scales: CacheScales
    record: manifest.CacheScales


def measured_scales(
    config: NeoXConfig, places: Layout, export: Export, folder: Path, text: Windows, progress: Progress
) -> MeasuredScales:
    """Run the first windows of `text` over flat weights in `folder`, with a cache of floats."""
    plain = export.model_copy(update={"kv_cache": None, "taps": ()})
    graph = build_decoder(config, places, plain).SerializeToString()
    session = Session(graph, folder, config, kv_cache=kv_cache(plain), native=False)
    ids = text.ids[:WINDOWS]
    peaks: dict[str, np.ndarray] = {}
    with progress.track("Measuring keys and values", len(ids), "windows") as advance:
        for window in ids:
            cache = session.start(1, len(window))
            session.step(cache, window[None], keep=1)
            for past, value in cache.values.items():
                peak = np.abs(value.numpy()[0]).max(axis=1)  # [heads, head_dim]
                _, layer, part = past.split(".")
                name = name_of(int(layer), part)
                peaks[name] = np.maximum(peaks.get(name, 0), peak)
            advance(1)
    scales = {name: np.where(peak > 0, peak * (MARGIN / MOST), 1).astype(np.float32) for name, peak in peaks.items()}
    windows, length = ids.shape
    record = manifest.CacheScales(source=text.source, sha256=text.sha256, windows=windows, sequence_length=length)
    return MeasuredScales(scales, record)
