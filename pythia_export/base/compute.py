"""Where torch computes, and with what: one record, passed whole from a command to the loops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from .device import CPU
from .progress import SILENT, Progress


@dataclass(frozen=True)
class Compute:
    """device: where torch computes. progress: what is told how far the work is. memory_gb: of activations; more than
    that are kept in files, in the folder `scratch` (None: each loop says where)."""

    device: torch.device = CPU
    progress: Progress = SILENT
    memory_gb: float = 4.0
    scratch: Path | None = None


DEFAULT = Compute()
