"""GPTQ of the fused query, key and value matrix, each of the three by what attention makes of its errors.

An error in the key matrix moves all keys of a window at once, and softmax sees only by what they differ. One in the
value matrix reaches the output as its mean over the places attended to. So what counts is a combination of inputs over
places, another one for q, k and v. Their Hessians are ``E[D^T D]``, D the gradient of a whole window's loss by the
matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..recipe import Quantize, Scheme
from .coupled import gptq_coupled, joined
from .gptq import factor
from .grid import Quantized


def gptq_attention(
    W: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    scheme: Scheme,
    settings: Quantize,
    scale_dtype: torch.dtype = torch.float32,
) -> tuple[Quantized, float]:
    """Quantise W [heads * 3 * head_dim, in]; return it and the largest damping that a Hessian needed.

    inputs: [3, in, in] of q, k and v. outputs: [3, heads, head_dim, head_dim], by which rows of a head make up for each
    other.

    Raises:
        NumericsError: as `factor` and `gptq_coupled` do.
    """
    _, heads, size, _ = outputs.shape
    by_part = W.unflatten(0, (heads, 3, size)).transpose(0, 1).flatten(1, 2)
    parts, damp = [], 0.0
    for rows, H, G in zip(by_part, inputs, outputs, strict=True):
        L = factor(H, settings)
        parts.append(gptq_coupled(rows, L, G, scheme, settings, scale_dtype))
        damp = max(damp, L.damp)
    places = torch.arange(len(W), device=W.device).view(3, heads, size).transpose(0, 1).flatten()
    return joined(parts, places), damp
