"""GPTQ of the fused query, key and value matrix, each of the three by what attention makes of its errors.

An error in the key matrix moves all keys of a window at once, and softmax sees only by what they differ. One in the
value matrix reaches the output as its mean over the places attended to. So what counts is a combination of inputs over
places, another one for q, k and v. Their Hessians are ``E[D^T D]``, D the gradient of a whole window's loss by the
matrix.

A head computes the same in any basis: ``q^T k = (A^T q)^T (A^-1 k)``, and dense times v is ``(dense A) (A^-1 v)``. So
of an error in k or v only that counts which no change of basis takes back. With Hessian H and rows W [n, in] that is
what is left of H beside the rows themselves, ``H - H W^T (W H W^T)^-1 W H``: by this k and v are rounded. Then the
basis is chosen in which they are nearest to what was rounded, and q and dense, which are rounded after them, follow it.
What the rotary embedding turns keeps its basis, and without `balance` all do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..recipe import Quantize, Scheme
from .coupled import gptq_coupled, joined
from .gptq import factor
from .grid import Quantized

# Of what a change of basis takes back, that is taken as an error all the same: the basis need not go far then. At 2
# bits it would go so far that q, which follows, costs more to round.
KEPT, KEPT_AT_2_BITS = 0.02, 0.2
RIDGE = 1e-6  # of the mean diagonal of W H W^T, where a head has fewer directions than rows
FARTHEST = 16.0  # a basis whose singular values are beyond this, or its inverse, is not taken


@dataclass(frozen=True)
class Basis:
    """The basis of each head in which its q, k and v were rounded.

    rows: [heads, 3, size, size], by which the rows of q, k and v are multiplied. columns: [heads, size, size], by which
    dense's columns are.
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def unchanged(cls, heads: int, size: int, like: Tensor) -> Basis:
        """Return the basis that heads of `size` rows have already, in the dtype and on the device of `like`."""
        rows = torch.eye(size, dtype=like.dtype, device=like.device).repeat(heads, 3, 1, 1)
        return cls(rows, rows[:, 2].clone())

    def change(self, head: int, part: int, first: int, A: Tensor) -> None:
        """Take A^-1 of k (part 1) or v (part 2), from row `first` of a head on; q or dense then takes what makes up."""
        self.rows[head, part, first:, first:] = torch.linalg.inv(A)
        if part == 1:
            self.rows[head, 0, first:, first:] = A.T
        else:
            self.columns[head] = A

    def of_qkv(self, x: Tensor) -> Tensor:
        """Return QKV's matrix [heads * 3 * size, in] or bias [heads * 3 * size] in this basis."""
        return (self.rows.to(x) @ x.reshape(*self.rows.shape[:3], -1)).reshape(x.shape)

    def of_dense(self, W: Tensor) -> Tensor:
        """Return dense's matrix [out, heads * size] in this basis."""
        heads: Tensor = W.unflatten(1, self.columns.shape[:2]).transpose(0, 1)
        return (heads @ self.columns.to(W)).transpose(0, 1).flatten(1).contiguous()


def gptq_attention(
    W: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    scheme: Scheme,
    settings: Quantize,
    scale_dtype: torch.dtype = torch.float32,
    *,
    turned: int,
) -> tuple[Quantized, Basis, float]:
    """Quantise W [heads * 3 * head_dim, in]; return it, the basis that it is in, and the largest damping that a Hessian
    needed.

    inputs: [3, in, in] of q, k and v. outputs: [3, heads, head_dim, head_dim], by which rows of a head make up for each
    other. turned: how many rows of each head of q and k, the first ones, the rotary embedding turns.

    Raises:
        NumericsError: as `factor` and `gptq_coupled` do.
    """
    _, heads, size, _ = outputs.shape
    basis = Basis.unchanged(heads, size, inputs)
    places = torch.arange(len(W), device=W.device).view(heads, 3, size)
    parts, taken, damps = [], [], []
    kept = KEPT_AT_2_BITS if scheme.bits == 2 else KEPT

    def round_together(W: Tensor, H: Tensor, part: int, at: Tensor, first: int, last: int) -> Quantized:
        """Round rows first to last of q, k or v of some heads, which lie at `at` [heads, last - first] in W."""
        L = factor(H, settings)
        damps.append(L.damp)
        G = outputs[part, torch.div(at[:, 0], 3 * size, rounding_mode="floor"), first:last, first:last]
        return gptq_coupled(W[at.flatten()], L, G, scheme, settings, scale_dtype)

    def take(found: Quantized, at: Tensor) -> None:
        parts.append(found)
        taken.append(at.flatten())

    for part, first in ((1, turned), (2, 0)) if settings.balance else ((1, size), (2, size)):
        if first:
            take(round_together(W, inputs[part], part, places[:, part, :first], 0, first), places[:, part, :first])
        for head in range(heads if first < size else 0):
            at, H = places[head : head + 1, part, first:], inputs[part]
            wanted = W[at[0]].to(H.dtype)
            found = round_together(W, beside(wanted, H, kept), part, at, first, size)
            A = nearest_basis(wanted, found.dequantize().to(H.dtype), H)
            if A is None:
                take(round_together(W, H, part, at, first, size), at)
                continue
            take(found, at)
            basis.change(head, part, first, A)
    take(round_together(basis.of_qkv(W), inputs[0], 0, places[:, 0], 0, size), places[:, 0])
    return joined(parts, torch.argsort(torch.cat(taken))), basis, max(damps)


def basis_between(W: Tensor, Q: Tensor, H: Tensor, *, heads: int, turned: int) -> Basis:
    """Return the basis of each head in which k and v of QKV's matrix W are nearest to those of Q, both
    [heads * 3 * size, in], by H [in, in]. `turned` as above; a head that is too far keeps its own."""
    by_part, ours = (x.double().unflatten(0, (heads, 3, -1)) for x in (W, Q))
    size, H = by_part.shape[2], H.double()
    basis = Basis.unchanged(heads, size, H)
    for part, first in ((1, turned), (2, 0)):
        for head in range(heads if first < size else 0):
            A = nearest_basis(by_part[head, part, first:], ours[head, part, first:], H)
            if A is not None:
                basis.change(head, part, first, A)
    return basis


def beside(W: Tensor, H: Tensor, kept: float) -> Tensor:
    """Return H [in, in] less what a change of basis of rows W [n, in] takes back of it, but for the share `kept`."""
    WH = W @ H
    taken_back: Tensor = torch.linalg.solve(_ridged(WH @ W.T), WH)
    return H - (1 - kept) * WH.T @ taken_back


def nearest_basis(W: Tensor, Q: Tensor, H: Tensor) -> Tensor | None:
    """Return A [n, n] for which A Q is nearest to W, both [n, in], by H; None where it is too far from any rotation."""
    QH = Q @ H
    A: Tensor = torch.linalg.solve(_ridged(QH @ Q.T), QH @ W.T).T
    if not torch.isfinite(A).all():
        return None
    spread = torch.linalg.svdvals(A)
    return A if float(spread.max()) < FARTHEST and float(spread.min()) > 1 / FARTHEST else None


def _ridged(H: Tensor) -> Tensor:
    return H + (RIDGE * H.diagonal().mean() + 1e-30) * torch.eye(len(H), dtype=H.dtype, device=H.device)
