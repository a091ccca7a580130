"""GPTQ over rows as well as columns.

An error in one output of a linear can be made up for by its other outputs, as far as the loss sees them together. With
``G = E[g g^T]``, g the gradient of the loss at the linear's output, a second-order model of the loss is
``tr(G E H E^T) / 2`` (K-FAC, arXiv 1503.05671; as the objective of rounding: YAQA, arXiv 2505.22988). GPTQ minimises it
for diagonal G, when rows do not meet. Here rows are taken in passes: those of a pass are rounded by GPTQ together, from
weights that make up for the rows of earlier passes, through the Cholesky factor of G as columns do through that of H.

G is block-diagonal, [blocks, size, size]: the fused QKV meets head by head, a residual writer as a whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.errors import NumericsError
from ..recipe import Quantize, Scheme
from .gptq import Factor, gptq
from .grid import Quantized

DAMP = 0.05  # G is estimated from fewer tokens than H and only steers; the loss does not fail without it


def gptq_coupled(
    W: Tensor,
    factor: Factor,
    G: Tensor,
    scheme: Scheme,
    settings: Quantize,
    scale_dtype: torch.dtype = torch.float32,
) -> Quantized:
    """Quantise W [out, in] against a factored Hessian and G [blocks, out / blocks, out / blocks], as `gptq` else.

    Raises:
        NumericsError: W or G holds a NaN or an infinity, or numbers so large that squares of errors overflow.
    """
    blocks, size, _ = G.shape
    L, order = _row_factor(G)
    starts = torch.arange(blocks, device=W.device)[:, None] * size
    E = torch.zeros(blocks, size, W.shape[1], dtype=W.dtype, device=W.device)  # rows at their places
    parts, rows = [], []
    edges = torch.linspace(0, size, min(settings.passes, size) + 1).round().int().tolist()
    for low, high in reversed(list(zip(edges, edges[1:], strict=False))):
        taken = (starts + order[:, low:high]).flatten()
        owed = L[:, high:, low:high].transpose(1, 2) @ E[:, high:]
        owed /= L.diagonal(dim1=1, dim2=2)[:, low:high, None]
        wanted = W[taken] + owed.flatten(0, 1)
        part = gptq(wanted, factor, scheme, settings, scale_dtype)
        E[:, low:high] = (W[taken] - part.dequantize().to(W.dtype)).unflatten(0, (blocks, high - low))
        parts.append(part)
        rows.append(taken)
    return joined(parts, torch.argsort(torch.cat(rows)))


def joined(parts: list[Quantized], places: Tensor) -> Quantized:
    """Return parts of a matrix as one; `places` [out] says where each row lies in the parts, one after another."""
    scheme = parts[0].scheme
    zero = None if scheme.symmetric else torch.cat([p.zero_point for p in parts if p.zero_point is not None])
    return Quantized(torch.cat([p.q for p in parts]), torch.cat([p.scale for p in parts]), zero, scheme).rows(places)


def _row_factor(G: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors of the damped blocks, rows by rising importance, and the row at each place [blocks, size]."""
    diagonal = G.diagonal(dim1=1, dim2=2)
    order = torch.argsort(diagonal, dim=1, stable=True)
    damped = G + torch.diag_embed((DAMP * diagonal.mean(1, keepdim=True) + 1e-30).expand_as(diagonal))
    placed = torch.take_along_dim(torch.take_along_dim(damped, order[:, :, None], 1), order[:, None, :], 2)
    L, info = torch.linalg.cholesky_ex(placed)
    if info.any() or not torch.isfinite(L.diagonal(dim1=1, dim2=2)).all():
        raise NumericsError(
            "the sensitivity of the loss to its outputs is no positive definite matrix: a gradient overflowed",
            hint="`quantize.fisher = false` does without; but look at the checkpoint's weights first.",
        )
    return L, order
