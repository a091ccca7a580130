"""How a recipe is carried out: what `run` and `quantize` may be told beside it."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.device import DeviceName
from ..checkpoint import Accept
from .pull import ACCEPT


@dataclass(frozen=True)
class Options:
    """`overwrite` replaces an artifact that is there. `resume` goes on after the last layer that an interrupted run of
    the same inputs finished. `accept` says which doubtful checkpoints are taken. `evict` takes the checkpoint out of
    the hub's cache once the artifact is published. torch computes on `device`."""

    overwrite: bool = False
    resume: bool = False
    accept: Accept = ACCEPT
    evict: bool = False
    device: DeviceName = "cpu"


AS_USUAL = Options()
