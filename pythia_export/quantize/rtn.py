"""Round to nearest: every weight to the closest point of its group's grid, without looking at any input."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import Quantized, find_grid, to_codes


def rtn(W: Tensor, bits: int, group_size: int, symmetric: bool, scale_dtype: torch.dtype = torch.float32) -> Quantized:
    """Quantise W [out, in]; group_size -1 is the whole row.

    Raises:
        NumericsError: W holds a NaN or an infinity.
    """
    W = W.float()
    size = group_size if group_size > 0 else W.shape[1]
    grids = [find_grid(part, bits, symmetric, scale_dtype) for part in W.split(size, dim=1)]
    scale, zero = (torch.stack(x, dim=1) for x in zip(*grids, strict=True))
    column = torch.arange(W.shape[1]) // size
    q = to_codes(W, scale[:, column], zero[:, column], bits).to(torch.uint8)
    return Quantized(q, scale, None if symmetric else zero.to(torch.uint8), bits, size)
