"""Sessions of the runtime's tests: tiny artifacts, tokens to feed, and a session whose answers are written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from models import Exported, InMemory, export_model, small_config
from tokenizers import Tokenizer

from pythia_export.artifact import Staging
from pythia_export.graph.decoder import kv_cache
from pythia_export.recipe import Export, Quantize
from pythia_export.records.manifest import Origin
from pythia_export.runtime.onnxruntime import OLDEST_FOR_SCALES

VOCAB = 300
QUANTIZE = {"method": "rtn", "bits": 8, "group_size": 32, "head": {"method": "rtn", "bits": 8, "group_size": 32}}
ROUNDING = {"float32": 2e-5, "float16": 2e-3, "int8": 2e-2}  # what a cache of that type may change, relative


def export_and_publish(
    source: InMemory, tokenizer: Tokenizer, out: Path, export: Export, quantize: Quantize
) -> Exported:
    with Staging(out) as staging:
        exported = export_model(source, staging.folder, quantize, export)
        (staging.folder / "config.json").write_text(json.dumps(source.config.to_dict()))
        tokenizer.save(str(staging.folder / "tokenizer.json"))
        recipe = {
            "model": {"id": "demo"},
            "quantize": quantize.model_dump(mode="json"),
            "export": export.model_dump(mode="json"),
            "verify": {"source": "python-stdlib"},
        }
        if export.static_scales:
            recipe["calibration"] = {"source": "python-stdlib"}
        layout = {"kv_cache": kv_cache(export), "kv_dtype": export.cache_dtype}
        staging.publish(
            Origin(
                versions={},
                source={"name": "m", "revision": "main", "commit": "c"},
                recipe=recipe,
                calibration=None,
                layout=layout,
            )
        )
    return exported


def tokens(rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, VOCAB, (rows, length))


OLD_RUNTIME = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < OLDEST_FOR_SCALES
needs_fixed_scales = pytest.mark.skipif(OLD_RUNTIME, reason="this ONNX Runtime runs no int8 cache with fixed scales")


def close(a: np.ndarray, b: np.ndarray, rounding: float = 2e-5) -> bool:
    return bool(np.abs(a - b).max() <= rounding * np.abs(b).max())


class ScriptedCache:
    """As many rows as go on; which of the script's rows they are."""

    movable = True

    def __init__(self, rows: int, max_len: int) -> None:
        self.rows, self.max_len, self.length = list(range(rows)), max_len, 0

    def restart(self, rows: int) -> None:
        assert rows == len(self.rows) and not self.length

    def keep(self, rows: list[int]) -> None:
        self.rows = [self.rows[row] for row in rows]

    @property
    def counts(self) -> np.ndarray:
        return np.full(len(self.rows), self.length)


class Scripted:
    """A session whose next token is written down: what the model would say cannot be chosen, and endings must be."""

    moves_rows = True
    kv_dtype = np.dtype("float32")

    def __init__(self, config, *rows: Sequence[int]) -> None:
        self.config, self.rows, self.t, self.fed = config, rows, 0, []

    def start(self, batch: int, max_len: int) -> ScriptedCache:
        return ScriptedCache(batch, max_len)

    def step(
        self, cache: ScriptedCache, ids: np.ndarray, mask: np.ndarray | None = None, *, keep: int | None = None
    ) -> np.ndarray:
        self.fed.append(ids)
        cache.length += ids.shape[1]
        logits = np.zeros((len(ids), keep or ids.shape[1], self.config.vocab_size), np.float32)
        for at, row in enumerate(cache.rows):
            logits[at, -1, self.rows[row][min(self.t, len(self.rows[row]) - 1)]] = 1
        self.t += 1
        return logits

    def decode(self, cache: ScriptedCache, tokens: Sequence[int], *, unchecked: bool = False) -> np.ndarray:
        assert len(tokens) == len(cache.rows)
        return self.step(cache, np.array(tokens)[:, None])[:, 0]


def scripted(tokenizer: Tokenizer, *texts: str) -> Scripted:
    config = small_config(vocab=VOCAB, positions=48)
    return Scripted(config, *([*tokenizer.encode(text).ids, 0, 5] for text in texts))  # EOS, and then something else
