"""The model in torch, one layer in memory at a time: from a checkpoint, or from an artifact's own dequantised weights.

The same code computes both, so what differs between them is the weights.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..block import Block, Rotary, final_norm, head
from ..neox import EMBEDDING, FINAL_NORM, HEAD, NeoXConfig, layer_tensors
from ..progress import SILENT, Progress

CHUNK_TOKENS = 4096


class Tensors(Protocol):
    """A `Checkpoint` or a `WeightsReader`: tensors by on-disk name."""

    def tensor(self, name: str) -> Tensor: ...


class Reference:
    """Logits of `source` on windows ids [N, S], float32; hidden states are computed once, logits window by window."""

    def __init__(
        self, source: Tensors, config: NeoXConfig, ids: np.ndarray, title: str, progress: Progress = SILENT
    ) -> None:
        def read(name: str) -> Tensor:
            return source.tensor(name).float()

        rotary = Rotary.of(config, ids.shape[1], torch.float32)
        with torch.inference_mode(), progress.track(title, config.num_layers, "layers") as advance:
            x = source.tensor(f"{EMBEDDING}.weight")[torch.tensor(ids)].float()
            per_chunk = max(1, CHUNK_TOKENS // ids.shape[1])
            for layer in range(config.num_layers):
                weights = {spec.name: read(spec.name) for spec in layer_tensors(config, layer)}
                block = Block(config, layer, weights.__getitem__)
                for chunk in x.split(per_chunk):
                    chunk.copy_(block(chunk, rotary))
                advance(1)
            ends = {f"{FINAL_NORM}.{part}": read(f"{FINAL_NORM}.{part}") for part in ("weight", "bias")}
            for chunk in x.split(per_chunk):
                chunk.copy_(final_norm(chunk, config, ends.__getitem__))
            self._hidden = x
            self._head = {f"{HEAD}.weight": read(f"{HEAD}.weight")}

    def logits(self, window: int) -> np.ndarray:
        """[S, vocab] float32 of one window."""
        with torch.inference_mode():
            return head(self._hidden[window], self._head.__getitem__).numpy()
