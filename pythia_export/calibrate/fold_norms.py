"""A layer with two products: what its LayerNorms differ by, their shifts and one output bias lie in the other weights.

Pythia's block is ``x + dense(attn(QKV(ln1(x)))) + 4h_to_h(gelu(h_to_4h(ln2(x))))``. With ``ln(x) = z g + b`` of the
normalised vector z, ``W ln(x) + c = W diag(g / s) (z s) + (W b + c)`` for any s: exact in real arithmetic, and with one
s for both, QKV and h_to_4h read the same vector. s is the root mean square of both g: of the means that were tried, and
beside s = 1, rounding costs least with it. dense and 4h_to_h are summed, so one bias does for both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.block import UP
from ..model.neox import NORMS, QKV, NeoXConfig
from ..weights.layout import FUSED_OUT, PARTS
from .placed import Tensors

_NORM_OF = dict(zip((QKV, UP), NORMS, strict=True))
_LEAST = 1e-3  # of s: a column that both norms silence is not divided by zero


class Folded:
    """The tensors of `source`, an equal model: LayerNorms of one scale s and shift 0, and dense without a bias.

    float32, folded in float64.
    """

    def __init__(self, source: Tensors) -> None:
        self.config: NeoXConfig = source.config
        self._source = source

    def tensor(self, name: str) -> Tensor:
        base, part = name.rsplit(".", 1)
        prefix, linear = ".".join(base.split(".")[:3]), ".".join(base.split(".")[3:])
        dense, down = PARTS[FUSED_OUT]
        if linear in NORMS:
            return self._scale(prefix).float() if part == "weight" else torch.zeros(self.config.hidden_size)
        if linear in _NORM_OF:
            norm = f"{prefix}.{_NORM_OF[linear]}"
            W = self._double(f"{base}.weight")
            if part == "weight":
                return (W * (self._double(f"{norm}.weight") / self._scale(prefix))).float()
            return (self._double(name) + W @ self._double(f"{norm}.bias")).float()
        if part == "bias" and linear == dense:
            return torch.zeros(self.config.hidden_size)
        if part == "bias" and linear == down:
            return (self._double(name) + self._double(f"{prefix}.{dense}.bias")).float()
        return self._source.tensor(name)

    def _scale(self, prefix: str) -> Tensor:
        """s [hidden] of a layer, float64, as float32 holds it."""
        a, b = (self._double(f"{prefix}.{norm}.weight") for norm in NORMS)
        return ((a.square() + b.square()) / 2).sqrt().clamp(min=_LEAST).float().double()

    def _double(self, name: str) -> Tensor:
        return self._source.tensor(name).double()
