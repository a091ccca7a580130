"""Round the columns of some rows, one after another, so that the columns still to come make up for the errors.

To round a row against H is to find the lattice point that is nearest in the norm of H, and GPTQ is Babai's
nearest-plane algorithm for it (arXiv 2507.18553): each column takes the code nearest to what it should be, whatever
that leaves to the columns to come (`Nearest`). `Beam` carries the best few roundings of each row on: every column of
each takes its two nearest codes, and of all the best go on (K-best decoding, Guo and Nilsson 2006,
doi 10.1109/JSAC.2005.862402).

Roundings that are carried on soon have their beginnings in common: half of all rows' agree 64 columns back, 99 in 100
rows' 182 back (width 8). So a beam keeps them apart for the last `APART` columns only. Those before are settled: the
best rounding's codes are taken for all, and those that still differ in them are given up, as decoders of
convolutional codes do (Viterbi with truncated paths). What a settled column leaves to make up for is then computed
once a row, not once for each of its roundings.

Columns are called by their places in the factor, from the last to the first, and are rounded a block at a time, a run
of places. `errors` and `codes` are those of the blocks so far; of a beam, of the rounding that is best then.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..base.errors import NumericsError
from ..recipe import Scheme
from . import native
from .grid import to_codes

APART = 128  # columns; with more the losses were the same


HUGE = (
    "Such numbers are most often what training leaves behind when it diverges: look at the checkpoint. "
    "method = 'none' for this linear (`quantize.override`) stores it as it is."
)


def too_large(W: Tensor) -> NumericsError:
    return NumericsError(
        f"the error of rounding weights as large as {W.abs().max():.3g} is more than {str(W.dtype)[6:]} holds",
        hint=HUGE,
    )


class Rounding(Protocol):
    block: int  # places at most

    def round(self, first: int, last: int, scale: Tensor, zero: Tensor) -> None:
        """Places first to last, on the grids scale and zero [last - first, out]."""

    def errors(self, first: int) -> Tensor:
        """[n - first, out] of the places from `first`, where the last block began, to the end."""

    def codes(self) -> Tensor:
        """[n, out] uint8, once all places are rounded.

        Raises:
            NumericsError: weights were so large that errors, or their squares, are no finite numbers.
        """


class Nearest:
    """free: [n, out], weights by place. L: [n, n] lower, the factor by place."""

    block = 64

    def __init__(self, free: Tensor, L: Tensor, scheme: Scheme) -> None:
        self._free, self._L, self._scheme = free, L, scheme
        self._errors, self._codes = torch.empty_like(free), torch.empty_like(free, dtype=torch.uint8)
        self._pivots = L.diagonal().tolist()

    def round(self, first: int, last: int, scale: Tensor, zero: Tensor) -> None:
        wanted = self._L[last:, first:last].T @ self._errors[last:]
        within = self._L[first:last, first:last].T.contiguous()
        for k in range(last - 1, first - 1, -1):
            at, free = k - first, self._free[k]
            target = wanted[at]
            if k + 1 < last:
                target.addmv_(self._errors[k + 1 : last].T, within[at, at + 1 :])
            target.div_(self._pivots[k]).add_(free)
            codes = to_codes(target, scale[at], zero[at], self._scheme)
            self._codes[k] = codes
            torch.sub(free, codes.sub_(zero[at]).mul_(scale[at]), out=self._errors[k])

    def errors(self, first: int) -> Tensor:
        return self._errors[first:]

    def codes(self) -> Tensor:
        if not torch.isfinite(self._errors).all():
            raise too_large(self._free)
        return self._codes


class Beam:
    """As `Nearest`, with `width` roundings of each row."""

    block = 32

    def __init__(self, free: Tensor, L: Tensor, scheme: Scheme, width: int) -> None:
        self._free, self._L, self._width, self._top = free, L, width, scheme.top
        n, self._rows = free.shape
        self._settled, self._settled_codes = torch.empty_like(free), torch.empty_like(free, dtype=torch.uint8)
        # Of one rounding all numbers lie together, since roundings are copied, dropped and change places.
        self._errors = free.new_zeros(self._rows * width, min(n, 2 * APART + self.block))
        self._codes = torch.zeros_like(self._errors, dtype=torch.uint8)
        self._cost = free.new_full((self._rows, width), torch.inf)
        self._cost[:, 0] = 0
        self._native = free.dtype == torch.float32 and native.available(free.device)
        self._begin = torch.arange(self._rows, device=free.device)[:, None] * width
        self._edge = self._first = n  # places from _edge on are settled, those from _first on are rounded
        self._base = n - self._errors.shape[1]  # the place that lies first in _errors

    def round(self, first: int, last: int, scale: Tensor, zero: Tensor) -> None:
        if first < self._base:
            self._make_room(last)
        apart = slice(last - self._base, self._edge - self._base)
        of_settled = self._L[self._edge :, first:last].T @ self._settled[self._edge :]  # [last - first, rows]
        owed = self._errors[:, apart] @ self._L[last : self._edge, first:last]
        if self._native:
            begin, columns = first - self._base, self._edge - last
            block = native.Block(
                self._top, begin, columns, self._free[first:last], of_settled, scale, zero,
                self._L[first:last, first:last], owed, self._cost, self._errors, self._codes,
            )  # fmt: skip
            if not native.round_block(block):
                raise too_large(self._free)
        else:
            self._round_in_torch(first, last, scale, zero, owed.unflatten(0, self._cost.shape) + of_settled.T[:, None])
        self._first = first
        if self._edge - first > APART:
            self._settle(first + APART)

    def _round_in_torch(self, first: int, last: int, scale: Tensor, zero: Tensor, owed: Tensor) -> None:
        owed, steps = owed.flatten(0, 1), []
        for k in range(last - 1, first - 1, -1):
            at = k - first
            errors, codes, parents = self._choose(k, owed[:, at], scale[at, :, None], zero[at, :, None])
            steps.append((errors, codes, parents))
            if at:
                owed = torch.addmm(owed[:, :at].index_select(0, parents), errors[:, None], self._L[k : k + 1, first:k])
        origin = torch.arange(len(self._errors), device=self._errors.device)  # where it was, what the block ends with
        for k, (errors, codes, parents) in zip(range(first, last), reversed(steps), strict=True):
            self._errors[:, k - self._base], self._codes[:, k - self._base] = errors[origin], codes[origin]
            origin = parents[origin]
        apart = slice(last - self._base, self._edge - self._base)
        for kept in (self._errors, self._codes):
            kept[:, apart] = kept[:, apart].index_select(0, origin)

    def _choose(self, k: int, owed: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Errors, codes and parents [rows * width] of the roundings that go on at place k."""
        free, pivot = self._free[k][:, None], self._L[k, k]
        target = (owed.view(self._cost.shape) / pivot).add_(free)
        wanted = (target / scale).add_(zero)
        near = wanted.round().clamp_(0, self._top)
        other = torch.where(wanted > near, near + 1, near - 1).clamp_(0, self._top)
        codes = torch.stack((near, other), 2)
        values = (codes - zero[..., None]).mul_(scale[..., None])
        cost = (target[..., None] - values).mul_(pivot).square_()
        # No second code at the end of the grid, nor to one that is exact: roundings that differ in an input that is
        # always zero would crowd out others.
        cost[..., 1].masked_fill_((near == other) | (near == wanted), torch.inf)
        cost = cost.add_(self._cost[..., None]).flatten(1)
        cost = torch.where(cost < torch.inf, cost, torch.inf)  # a NaN has no place in an order
        self._cost, chosen = cost.topk(self._width, largest=False, sorted=False)
        self._cost -= self._cost.amin(1, keepdim=True)  # differences alone matter, and small numbers tell them finer
        errors = (free - values.flatten(1).gather(1, chosen)).flatten()
        return errors, codes.flatten(1).gather(1, chosen).flatten(), (chosen // 2 + self._begin).flatten()

    def _settle(self, edge: int) -> None:
        """Settle the places from `edge` on."""
        if edge == self._edge:
            return
        columns, best = slice(edge - self._base, self._edge - self._base), self._best()
        codes, taken = self._codes[:, columns], self._codes[best, columns]
        self._settled[edge : self._edge] = self._errors[best, columns].T
        self._settled_codes[edge : self._edge] = taken.T
        differ = (codes.unflatten(0, self._cost.shape) != taken[:, None]).any(2)
        self._cost.masked_fill_(differ, torch.inf)
        self._edge = edge

    def _make_room(self, last: int) -> None:
        """Move what is apart to the end of its memory."""
        live, size = self._edge - last, self._errors.shape[1]
        for kept in (self._errors, self._codes):
            kept[:, size - live :] = kept[:, last - self._base : self._edge - self._base].clone()
        self._base = self._edge - size

    def errors(self, first: int) -> Tensor:
        apart = self._errors[self._best(), first - self._base : self._edge - self._base]
        return torch.cat((apart.T, self._settled[self._edge :]))

    def codes(self) -> Tensor:
        self._settle(self._first)
        if not torch.isfinite(self._cost.amin(1)).all():  # once a row has no finite cost it never has again
            raise too_large(self._free)
        return self._settled_codes

    def _best(self) -> Tensor:
        return self._cost.argmin(1) + self._begin[:, 0]
