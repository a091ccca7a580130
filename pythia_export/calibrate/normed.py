"""What a LayerNorm's normalised vector says of the linears that read it, whatever the norm's scale and shift."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.block import Block
from ..model.neox import has_bias, layer_prefix
from .problem import Moments, Problem


@dataclass(frozen=True)
class Normed:
    """Moments of a LayerNorm's normalised vector z [hidden], before its scale g and shift b.

    second: of z about its mean where `moved` and `between` are known, else as they are; moved: what the unquantised
    model's mean is away; between: ``E[(y - z) z^T]``, y the unquantised model's.
    """

    tokens: int
    mean: Tensor
    second: Tensor
    moved: Tensor | None
    between: Tensor | None

    @classmethod
    def of(cls, own: Moments, cross: Moments | None, tokens: int) -> Normed:
        mean = own.mean
        if cross is None:
            return cls(tokens, mean, own.second(), None, None)
        moved = cross.mean_x - own.mean
        second = own.centred()
        return cls(tokens, mean, second, moved, cross.centred().sub_(second))

    def problem(self, block: Block, linear: str, norm: str) -> Problem:
        """Return the problem of a linear that reads ``z g + b``. Without a bias its moments are about zero."""
        prefix, second, mean = layer_prefix(block.layer), self.second, self.mean
        W = block.weights(f"{prefix}.{linear}.weight")
        g, b = (block.weights(f"{prefix}.{norm}.{part}").to(second.dtype) for part in ("weight", "bias"))
        H = second * torch.outer(g, g)
        if self.moved is None or self.between is None:
            cross_term = torch.outer(g * mean, b)
            return Problem(W, H + cross_term + cross_term.T + torch.outer(b, b), self.tokens)
        drift = self.between * torch.outer(g, g)
        if not has_bias(block.config, linear):
            about = g * mean + b
            return Problem(W, H.addr_(about, about), self.tokens, drift=drift.addr_(g * self.moved, about))
        scaled = W.to(second.dtype) * g
        return Problem(W, H, self.tokens, drift=drift, mean=g * mean + b, shift=scaled @ self.moved)
