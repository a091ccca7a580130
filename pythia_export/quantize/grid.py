"""The grid that a group of weights is rounded to: ``w = (q - zero_point) * scale`` with q in [0, 2**bits).

Symmetric grids have their zero in the middle, ``2**(bits - 1)``, and ``scale = max|w| / (2**(bits-1) - 1/2)``, GPTQ's
own choice (IST-DASLab/gptq, quant.py). Asymmetric ones span [min(w, 0), max(w, 0)] with an integer zero point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NumericsError


@dataclass(frozen=True)
class Quantized:
    """Codes and grid of one linear.

    q: [out, in] uint8 in [0, 2**bits). scale: [out, groups] float32. zero_point: [out, groups] uint8, or None where it
    is 2**(bits - 1) everywhere. Column j belongs to group j // group_size; the last group may be short.
    """

    q: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bits: int
    group_size: int

    def dequantize(self) -> Tensor:
        """[out, in] float32."""
        columns = torch.arange(self.q.shape[1]) // self.group_size
        zero = zeros(self)[:, columns]
        return (self.q.float() - zero) * self.scale[:, columns]


def zeros(quantized: Quantized) -> Tensor:
    """Zero points as [out, groups] float32, whether stored or implied."""
    if quantized.zero_point is None:
        return torch.full_like(quantized.scale, 2 ** (quantized.bits - 1))
    return quantized.zero_point.float()


def find_grid(W: Tensor, bits: int, symmetric: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Scale and zero point, each [out] float32, of one group of columns W [out, n].

    The scale is rounded to `dtype`, the one it is stored in, so that rounding to the grid sees what the runtime will.

    Raises:
        NumericsError: W holds a NaN or an infinity.
    """
    if not torch.isfinite(W).all():
        raise NumericsError("a weight is NaN or infinite; it has no grid")
    top = 2**bits - 1
    high, low = W.amax(1).clamp(min=0), W.amin(1).clamp(max=0)
    scale = (2 * torch.maximum(high, -low) if symmetric else high - low) / top
    smallest = torch.finfo(dtype).tiny
    scale = torch.where(scale < smallest, torch.ones_like(scale), scale).to(dtype).float()
    if symmetric:
        return scale, torch.full_like(scale, 2 ** (bits - 1))
    return scale, (-low / scale).round().clamp(0, top)


def to_codes(W: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Nearest codes, float, same shape as W; scale and zero_point broadcast against it."""
    return (W / scale + zero_point).round().clamp(0, 2**bits - 1)
