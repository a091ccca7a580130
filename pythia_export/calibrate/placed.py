"""A checkpoint whose tensors come to the device that computes, one at a time."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..model.neox import NeoXConfig


class Tensors(Protocol):
    """A checkpoint, or anything that yields tensors by on-disk name."""

    config: NeoXConfig

    def tensor(self, name: str) -> Tensor: ...


class Placed:
    """The tensors of `source` on `device`."""

    def __init__(self, source: Tensors, device: torch.device) -> None:
        self.config: NeoXConfig = source.config
        self.device, self._source = device, source

    def tensor(self, name: str) -> Tensor:
        return self._source.tensor(name).to(self.device)
