"""Round to nearest: every weight to the closest point of its group's grid, without looking at any input."""

from __future__ import annotations

import torch
from torch import Tensor

from ..recipe import Scheme
from .grid import Quantized, find_grid, to_codes


def rtn(W: Tensor, scheme: Scheme, scale_dtype: torch.dtype = torch.float32, clip: bool = False) -> Quantized:
    """Quantise W [out, in]; `clip` searches each scale for the least squared error.

    Raises:
        NumericsError: W holds a NaN or an infinity.
    """
    W = W.float()
    scales, zeros, codes = [], [], []
    for part in W.split(scheme.columns(W.shape[1]), dim=1):
        scale, zero = find_grid(part, scheme, scale_dtype, torch.ones_like(part[0]) if clip else None)
        codes.append(to_codes(part, scale[:, None], zero[:, None], scheme).to(torch.uint8))
        scales.append(scale)
        zeros.append(zero)
    zero = torch.stack(zeros, dim=1).to(torch.uint8)
    return Quantized(torch.cat(codes, dim=1), torch.stack(scales, dim=1), None if scheme.symmetric else zero, scheme)
