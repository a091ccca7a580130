"""The artifact in our own runtime: by the native kernels, or by the function that its graph carries."""

from __future__ import annotations

import numpy as np

from ...artifact import Artifact
from ...runtime import MODEL, Session
from ...runtime.onnxruntime import onnxruntime
from ..job import Job

PACKAGES = ("onnxruntime-gpu", "onnxruntime", "numpy")
onnxruntime()  # imported here as every contestant's library is, and not while the graph is opened


class Ours:
    def __init__(self, job: Job) -> None:
        artifact = Artifact.open(job.artifact)
        self.files = [artifact.folder / n for n in artifact.manifest.files if n == MODEL or n.endswith("_data")]
        self._session = Session.open(artifact, threads=job.threads, native=job.variant == "native")
        self._room = job.room

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        self._cache = self._session.start(1, self._room)
        return self._last(ids)

    def step(self, token: int) -> np.ndarray:
        found: np.ndarray = self._session.decode(self._cache, [token])[0]
        return found

    def logits(self, ids: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._session.logits(ids[None])[0]
        return found

    def _last(self, ids: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._session.step(self._cache, ids[None], keep=1)[0, 0]
        return found


open_contestant = Ours
