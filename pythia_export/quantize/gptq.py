"""GPTQ (Frantar et al. 2023, arXiv 2210.17323): round one column after another, and let the columns that are still
free make up for the error, as far as the inputs' second moments ``H = E[x x^T]`` allow.

With U the upper Cholesky factor of ``(H + damp * mean(diag H) * I)^-1`` (section 3.3, step 3), column i of W is rounded
to q_i, ``e_i = (w_i - q_i) / U_ii``, and every later column j loses ``e_i U_ij``. Columns are taken in blocks so that
the update of the far columns is one matrix product.

Three things differ from the paper's code:

- act-order keeps groups static: columns are visited by falling diag(H), but each is rounded to the grid of the group it
  is stored in, so nothing has to be permuted at run time;
- without act-order the scale of a group is taken when the group begins, from columns that carry all compensation so
  far, not from columns that are stale inside a block;
- a Hessian that is not positive definite climbs a damping ladder, recorded, and fails by name at its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NumericsError
from .grid import Quantized, find_grid, to_codes

BLOCK = 128


@dataclass(frozen=True)
class GPTQResult:
    quantized: Quantized
    damp: float  # relative, the one that worked


def gptq(
    W: Tensor,
    H: Tensor,
    bits: int,
    group_size: int,
    symmetric: bool,
    act_order: bool,
    damp: float,
    max_damp: float,
    scale_dtype: torch.dtype = torch.float32,
) -> GPTQResult:
    """Quantise W [out, in] against H [in, in], both float32 or float64; group_size -1 is the whole row.

    Raises:
        NumericsError: W or H holds a NaN or an infinity, or no damping up to max_damp makes H positive definite.
    """
    out, fan_in = W.shape
    size = group_size if group_size > 0 else fan_in
    if not torch.isfinite(W).all():
        raise NumericsError("a weight is NaN or infinite")
    if not torch.isfinite(H).all():
        raise NumericsError("the Hessian holds a NaN or an infinity: an activation overflowed")
    W, H = W.float().clone(), H.double()
    dead = H.diagonal() == 0  # an input that is always zero: any weight is exact, and zero is the cheapest
    H = H + torch.diag(dead.to(H.dtype))
    W[:, dead] = 0

    order = torch.argsort(H.diagonal(), descending=True, stable=True) if act_order else torch.arange(fan_in)
    group = torch.arange(fan_in) // size
    groups = int(group[-1]) + 1
    scale, zero = torch.empty(out, groups), torch.empty(out, groups)
    if act_order:
        for g in range(groups):
            scale[:, g], zero[:, g] = find_grid(W[:, group == g], bits, symmetric, scale_dtype)

    U, damp = _inverse_factor(H[order][:, order], damp, max_damp)
    W, group = W[:, order], group[order]
    Q = torch.empty_like(W)
    for first in range(0, fan_in, BLOCK):
        last = min(first + BLOCK, fan_in)
        error = torch.empty(out, last - first)
        for i in range(first, last):
            g = int(group[i])
            if not act_order and i % size == 0:
                # Columns of this group beyond the block have not had this block's corrections yet.
                fresh = W[:, i : i + size].clone()
                if i + size > last:
                    fresh[:, last - i :] -= error[:, : i - first] @ U[first:i, last : i + size]
                scale[:, g], zero[:, g] = find_grid(fresh, bits, symmetric, scale_dtype)
            s, z = scale[:, g], zero[:, g]
            Q[:, i] = to_codes(W[:, i], s, z, bits)
            e = (W[:, i] - (Q[:, i] - z) * s) / U[i, i]
            W[:, i + 1 : last] -= torch.outer(e, U[i, i + 1 : last])
            error[:, i - first] = e
        W[:, last:] -= error @ U[first:last, last:]

    q = torch.empty_like(Q, dtype=torch.uint8)
    q[:, order] = Q.to(torch.uint8)
    return GPTQResult(Quantized(q, scale, None if symmetric else zero.to(torch.uint8), bits, size), damp)


def _inverse_factor(H: Tensor, damp: float, max_damp: float) -> tuple[Tensor, float]:
    """Upper U, float32, with ``U^T U = (H + damp * mean(diag H) * I)^-1``, and the damp that it took."""
    mean = H.diagonal().mean()
    eye = torch.eye(len(H), dtype=H.dtype)
    while True:
        L, info = torch.linalg.cholesky_ex(H + damp * mean * eye)
        if not info:
            U, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(L), upper=True)
            if not info and torch.isfinite(U).all():
                return U.float(), damp
        if damp * 2 > max_damp * (1 + 1e-9):
            raise NumericsError(
                f"the Hessian is not positive definite even with damp {damp:g} (max_damp {max_damp:g})",
                hint="Calibrate on more tokens, raise `quantize.max_damp`, or give this linear method = 'rtn'.",
            )
        damp *= 2


def output_error(W: Tensor, quantized: Quantized, H: Tensor) -> float:
    """Relative squared error of the linear's output over the inputs behind H: ``tr(E H E^T) / tr(W H W^T)``."""
    W, H = W.double(), H.double()
    E = W - quantized.dequantize().double()
    return float(torch.sum((E @ H) * E) / torch.sum((W @ H) * W).clamp(min=1e-300))
