"""The checkpoint itself in transformers, with its KV cache: float32 or bfloat16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, GPTNeoXForCausalLM

from ..job import Job

PACKAGES = ("transformers", "torch")


class Transformers:
    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self.files = [Path(path) for path in job.weights]
        dtype = getattr(torch, job.variant)
        self._model = GPTNeoXForCausalLM.from_pretrained(job.checkpoint, dtype=dtype).eval()

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        self._cache = DynamicCache()
        found: np.ndarray = self._forward(ids, 1)[0]
        return found

    def step(self, token: int) -> np.ndarray:
        found: np.ndarray = self._forward(np.array([token]), 1)[0]
        return found

    def logits(self, ids: np.ndarray) -> np.ndarray:
        self._cache = DynamicCache()
        return self._forward(ids, 0)

    def _forward(self, ids: np.ndarray, keep: int) -> np.ndarray:
        """Logits of the last `keep` tokens; 0 is all."""
        with torch.inference_mode():
            out = self._model(
                torch.from_numpy(ids)[None], past_key_values=self._cache, use_cache=True, logits_to_keep=keep
            )
        found: np.ndarray = out.logits[0].float().numpy()
        return found


open_contestant = Transformers
