"""The model in torch: from a checkpoint, or from an artifact's own dequantised weights.

The same code computes both, so what differs between them is the weights.

One layer is in memory at a time, and the hidden states of as many windows as `SLAB_BYTES` hold. More windows than that
take several passes over the layers; then the weights are kept in memory if they are small beside what is free, and read
anew for each pass if not. `Reference.how` says which.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..base.compute import DEFAULT, Compute
from ..base.device import described, free_bytes
from ..model.block import Block, Rotary, final_norm, head
from ..model.neox import EMBEDDING, FINAL_NORM, HEAD, NeoXConfig, layer_tensors
from ..records import parity as records

CHUNK_TOKENS = 4096
SLAB_BYTES = 1 << 30  # of hidden states
SHARE_OF_MEMORY = 0.5  # of what is free, that kept weights may take


class Tensors(Protocol):
    """A `Checkpoint` or a `WeightsReader`: tensors by on-disk name."""

    def tensor(self, name: str) -> Tensor: ...


class Watch(Protocol):
    """Whoever runs other weights in step with the original, one layer at a time, and compares them."""

    sides: int  # weights that run beside the original's

    def begin(self, first: int, chunks: Sequence[Tensor], ends: Mapping[str, Tensor]) -> None:
        """A pass begins: with the embeddings of windows from `first` on, and the original's final norm and head."""
        ...

    def enter(self, block: Block) -> None:
        """The next layer, of the original."""
        ...

    def step(self, number: int, chunk: Tensor) -> Tensor:
        """Return the original's output of that layer, for the chunk of a number."""
        ...


class Reference:
    """Logits of `source` on windows ids [N, S], float32, window by window; cheapest in order. `together`: so many,
    it included, are used at once, and share the memory that kept weights may take. `watch` sees every pass."""

    def __init__(
        self,
        source: Tensors,
        config: NeoXConfig,
        ids: np.ndarray,
        title: str,
        compute: Compute = DEFAULT,
        *,
        together: int = 1,
        watch: Watch | None = None,
    ) -> None:
        device = compute.device
        self._watch = watch
        self._source, self._config, self._ids, self._device = source, config, ids, device
        self._title, self._progress = title, compute.progress
        self._rotary = Rotary.of(config, ids.shape[1], torch.float32, device)
        states = 1 if watch is None else 1 + watch.sides
        self._slab = max(1, min(len(ids), SLAB_BYTES // (states * 4 * ids.shape[1] * config.hidden_size)))
        passes, need = -(-len(ids) // self._slab), 4 * config.parameters
        free = _free_memory() if device.type == "cpu" else free_bytes(device)
        fits = together * need <= SHARE_OF_MEMORY * free
        self._kept: dict[str, Tensor] | None = {} if passes > 1 and fits else None
        weights = "kept in memory" if self._kept is not None else "one layer at a time"
        sizes = {"float32_bytes": need, "free_bytes": free}
        self.how = records.Reference(weights=weights, passes=passes, **sizes, device=described(device))
        self._first: int | None = None  # the slab that is held begins with this window
        self._head = {f"{HEAD}.weight": self._read(f"{HEAD}.weight")}

    def logits(self, window: int) -> np.ndarray:
        """[S, vocab] float32 of one window."""
        first = window - window % self._slab
        if first != self._first:
            self._hidden = self._pass(first)
            self._first = first
        with torch.inference_mode():
            return head(self._hidden[window - first], self._head.__getitem__).cpu().numpy()

    def watched(self) -> None:
        """Make every pass, for who watches them."""
        for first in range(0, len(self._ids), self._slab):
            self._pass(first)

    def _pass(self, first: int) -> Tensor:
        """What the head reads, [N, S, hidden], layer by layer."""
        config, ids, watch = self._config, self._ids[first : first + self._slab], self._watch
        with torch.inference_mode(), self._progress.track(self._title, config.num_layers, "layers") as advance:
            x = self._source.tensor(f"{EMBEDDING}.weight")[torch.tensor(ids)].to(self._device).float()
            chunks = x.split(max(1, CHUNK_TOKENS // ids.shape[1]))
            ends = {f"{FINAL_NORM}.{part}": self._read(f"{FINAL_NORM}.{part}") for part in ("weight", "bias")}
            if watch is not None:
                watch.begin(first, chunks, ends | self._head)
            for layer in range(config.num_layers):
                weights = {spec.name: self._read(spec.name) for spec in layer_tensors(config, layer)}
                block = Block(config, layer, weights.__getitem__)
                if watch is not None:
                    watch.enter(block)
                for number, chunk in enumerate(chunks):
                    chunk.copy_(block(chunk, self._rotary) if watch is None else watch.step(number, chunk))
                advance(1)
            for chunk in chunks:
                chunk.copy_(final_norm(chunk, config, ends.__getitem__))
        return x

    def _read(self, name: str) -> Tensor:
        if self._kept is None:
            return self._source.tensor(name).to(self._device).float()
        if name not in self._kept:
            self._kept[name] = self._source.tensor(name).to(self._device).float()
        return self._kept[name]


def _free_memory() -> int:
    """Bytes that this process may still take: of the machine, or of the control group that it is confined to."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    except (OSError, StopIteration, ValueError):  # not Linux; no limit ("max")
        pass
    return max(0, free)
