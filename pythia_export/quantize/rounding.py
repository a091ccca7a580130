"""Round the columns of some rows, one after another, so that the columns still to come make up for the errors.

To round a row against H is to find the lattice point that is nearest in the norm of H, and GPTQ is Babai's
nearest-plane algorithm for it (arXiv 2507.18553): each column takes the code nearest to what it should be, whatever
that leaves to the columns to come (`Nearest`). `Beam` carries the best few roundings of each row on: every column of
each takes its two nearest codes, and of all the best go on (K-best decoding, Guo and Nilsson 2006,
doi 10.1109/JSAC.2005.862402).

Columns are called by their places in the factor, from the last to the first. A block is a run of places: `open` gathers
what the places behind it left to make up for, `take` rounds one place, `close` ends it; `errors` and `codes` are those
of the blocks that were closed.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .grid import to_codes

STATES = 8192  # roundings that a beam carries on at once: enough to be worth a call, few enough to stay in the cache
CARRIED = 1 << 25  # and their weights: what bounds the memory of long rows
MOVED = 1 << 10  # columns that change places at once


class Rounding(Protocol):
    block: int  # places

    def open(self, first: int, last: int) -> None: ...
    def take(self, k: int, scale: Tensor, zero: Tensor) -> None: ...
    def close(self) -> None: ...
    def errors(self) -> Tensor: ...
    def codes(self) -> Tensor: ...


class Nearest:
    """free: [n, out], weights by place. L: [n, n] lower, the factor by place. errors [n, out]; codes [n, out] uint8."""

    block = 64

    def __init__(self, free: Tensor, L: Tensor, bits: int) -> None:
        self._free, self._L, self._bits = free, L, bits
        self._errors, self._codes = torch.empty_like(free), torch.empty_like(free, dtype=torch.uint8)
        self._pivots = L.diagonal().tolist()

    def open(self, first: int, last: int) -> None:
        self._first, self._last = first, last
        self._wanted = self._L[last:, first:last].T @ self._errors[last:]
        self._within = self._L[first:last, first:last].T.contiguous()

    def take(self, k: int, scale: Tensor, zero: Tensor) -> None:
        """Round the place k to the grid of scale and zero [out]."""
        at, free, errors = k - self._first, self._free[k], self._errors
        target = self._wanted[at]
        if k + 1 < self._last:
            target.addmv_(errors[k + 1 : self._last].T, self._within[at, at + 1 :])
        target.div_(self._pivots[k]).add_(free)
        codes = to_codes(target, scale, zero, self._bits)
        self._codes[k] = codes
        torch.sub(free, codes.sub_(zero).mul_(scale), out=errors[k])

    def close(self) -> None:
        pass

    def errors(self) -> Tensor:
        return self._errors

    def codes(self) -> Tensor:
        return self._codes


class Beam:
    """As `Nearest`, with `width` roundings of each row; errors and codes are those of the best."""

    block = 32

    def __init__(self, free: Tensor, L: Tensor, bits: int, width: int) -> None:
        self._free, self._L, self._width, self._top = free, L, width, 2**bits - 1
        n, self._rows = free.shape
        # One rounding's numbers lie together, since roundings are copied, dropped and change places.
        self._errors = free.new_zeros(self._rows * width, n)
        self._codes = free.new_zeros(self._rows * width, n, dtype=torch.uint8)
        self._cost = free.new_full((self._rows, width), torch.inf)
        self._cost[:, 0] = 0
        self._begin = torch.arange(self._rows, device=free.device)[:, None] * width

    def open(self, first: int, last: int) -> None:
        self._first, self._last = first, last
        self._owed = self._errors[:, last:] @ self._L[last:, first:last]
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def take(self, k: int, scale: Tensor, zero: Tensor) -> None:
        at, pivot, shape = k - self._first, self._L[k, k], self._cost.shape
        free, scale, zero = self._free[k][:, None], scale[:, None], zero[:, None]
        target = (self._owed[:, at].view(shape) / pivot).add_(free)
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
        self._cost, chosen = cost.topk(self._width, largest=False, sorted=False)
        self._cost -= self._cost.amin(1, keepdim=True)  # differences alone matter, and small numbers tell them finer
        errors = (free - values.flatten(1).gather(1, chosen)).flatten()
        parents = (chosen // 2 + self._begin).flatten()
        self._steps.append((errors, codes.flatten(1).gather(1, chosen).flatten(), parents))
        if at:
            owed = self._owed[:, :at].index_select(0, parents)
            self._owed = torch.addmm(owed, errors[:, None], self._L[k : k + 1, self._first : k])

    def close(self) -> None:
        origin = torch.arange(
            len(self._errors), device=self._errors.device
        )  # of what the block ends with, where it was at each step
        for k, (errors, codes, parents) in zip(range(self._first, self._last), reversed(self._steps), strict=True):
            self._errors[:, k], self._codes[:, k] = errors[origin], codes[origin]
            origin = parents[origin]
        for kept in (self._errors, self._codes):
            for part in kept[:, self._last :].split(MOVED, 1):
                part.copy_(part.index_select(0, origin))

    def errors(self) -> Tensor:
        return self._errors[self._best()].T

    def codes(self) -> Tensor:
        return self._codes[self._best()].T

    def _best(self) -> Tensor:
        return self._cost.argmin(1) + self._begin[:, 0]
