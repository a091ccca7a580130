"""llama.cpp by llama-cpp-python: a GGUF of the checkpoint in float16, or quantised by llama.cpp itself.

`variant` is the weights' type, and behind a comma the cache's, with flash attention: "Q4_0, q8_0". Without a comma it
is as llama-cpp-python has it by default: a cache of float16 without flash attention, which llama.cpp itself turns on.
On CPUs prompts are read faster with it, and tokens come faster without.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import llama_cpp
import numpy as np

from ...model.neox import NeoXConfig
from ..job import Job

PACKAGES = ("llama-cpp-python", "gguf")
BATCH = 2048  # tokens of a pass, as llama-bench has it


def prepare(job: Job) -> None:
    whole = job.folder("llama.cpp-F16.gguf")
    if not whole.is_file():
        from .gguf_file import write_gguf

        config = NeoXConfig.from_dict(json.loads((Path(job.checkpoint) / "config.json").read_text()))
        write_gguf(config, [Path(path) for path in job.weights], whole)
    weights, _ = _types(job.variant)
    out = job.folder(f"llama.cpp-{weights}.gguf")
    if not out.is_file():
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{weights}")
        settings.nthread = job.threads
        failed = llama_cpp.llama_model_quantize(bytes(whole), bytes(out), ctypes.byref(settings))
        if failed:
            raise RuntimeError(f"llama.cpp could not quantise to {weights}")


def _types(variant: str) -> tuple[str, int | None]:
    """The weights' type by its name, and the cache's by its number; None without flash attention."""
    weights, _, cache = variant.partition(", ")
    return weights, getattr(llama_cpp, f"GGML_TYPE_{cache.upper()}") if cache else None


class LlamaCpp:
    def __init__(self, job: Job) -> None:
        weights, self._cache = _types(job.variant)
        self.files = [job.folder(f"llama.cpp-{weights}.gguf")]
        self._threads = job.threads
        self._model = self._open(job.room, every_logit=False)

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        self._model.reset()
        self._model.eval(ids.tolist())
        return self._last()

    def step(self, token: int) -> np.ndarray:
        self._model.eval([token])
        return self._last()

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """A context of its own, since whether logits of every token are kept is settled when one is opened."""
        if not hasattr(self, "_scorer"):
            self._scorer = self._open(len(ids), every_logit=True)
        self._scorer.reset()
        self._scorer.eval(ids.tolist())
        return np.array(self._scorer.scores[: len(ids)])

    def _last(self) -> np.ndarray:
        logits = llama_cpp.llama_get_logits_ith(self._model.ctx, -1)
        return np.ctypeslib.as_array(logits, shape=(self._model.n_vocab(),))

    def _open(self, room: int, every_logit: bool) -> llama_cpp.Llama:
        return llama_cpp.Llama(
            str(self.files[0]), n_ctx=room, n_batch=BATCH, n_threads=self._threads, n_threads_batch=self._threads,
            n_gpu_layers=0, logits_all=every_logit, verbose=False, type_k=self._cache, type_v=self._cache,
            flash_attn=self._cache is not None,
        )  # fmt: skip


open_contestant = LlamaCpp
