"""What is proved: an artifact's graph and weights, and the checkpoint that they are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from ..calibrate import Tensors as Checkpointed
from ..graph.decoder import kv_cache
from ..graph.levels import with_accuracy_level
from ..model.neox import NeoXConfig
from ..recipe import Export, Quantize
from ..records.manifest import Checkpoint
from ..runtime import Session
from .reference import Tensors


@dataclass(frozen=True)
class Subject:
    """What is proved. `stored` are the dequantised weights of the data file that `model` names in `folder`; the
    artifact need not be published. `source` names the checkpoint: name, revision, commit; its `baseline` is `imported`
    where that is the quantised checkpoint that the weights were taken from."""

    source: Checkpoint
    original: Checkpointed
    stored: Tensors
    config: NeoXConfig
    model: onnx.ModelProto
    folder: Path
    quantize: Quantize
    export: Export
    baseline: Literal["original", "imported"] = "original"

    def graph(self, level: int) -> onnx.ModelProto:
        """The graph at an accuracy level, its own or another."""
        return self.model if level == self.export.accuracy_level else with_accuracy_level(self.model, level)

    def session(self, level: int, native: bool) -> Session:
        """Open the graph at an accuracy level, by the native kernels where they are built or by its own function."""
        return Session(
            self.graph(level).SerializeToString(), self.folder, self.config, kv_cache=kv_cache(self.export),
            kv_dtype=self.export.cache_dtype, provider="cuda" if self.export.target == "cuda" else "cpu", native=native,
        )  # fmt: skip
