"""The artifact in onnxruntime-genai, by the genai_config.json that it carries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

from ..job import Job

PACKAGES = ("onnxruntime-genai", "onnxruntime")


class GenAI:
    def __init__(self, job: Job) -> None:
        artifact = Path(job.artifact)
        if not (artifact / "genai_config.json").is_file():
            raise FileNotFoundError("the artifact has no genai_config.json: genai cannot feed a KV cache of its type")
        files = json.loads((artifact / "manifest.json").read_text())["files"]
        self.files = [artifact / name for name in files if name == "model.onnx" or name.endswith("_data")]
        config = og.Config(str(artifact))
        session = {"session_options": {"intra_op_num_threads": job.threads}}
        config.overlay(json.dumps({"model": {"decoder": session}}))
        self._model, self._room = og.Model(config), job.room

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        self._start(self._room, ids)
        found: np.ndarray = self._generator.get_logits()[0, -1]
        return found

    def step(self, token: int) -> np.ndarray:
        self._generator.append_tokens(np.array([token], np.int32))
        found: np.ndarray = self._generator.get_logits()[0, -1]
        return found

    def logits(self, ids: np.ndarray) -> np.ndarray:
        self._start(len(ids), ids)
        return np.array(self._generator.get_output("logits")[0])

    def _start(self, room: int, ids: np.ndarray) -> None:
        params = og.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, max_length=room, batch_size=1)
        self._generator = og.Generator(self._model, params)
        self._generator.append_tokens(ids.astype(np.int32))


open_contestant = GenAI
