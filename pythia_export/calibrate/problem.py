"""What rounding one linear needs to know, and the statistics of its inputs that say it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from ..base.device import CPU, as_multiplied
from ..base.errors import NumericsError

DOUBLE_BELOW = (
    4096  # widths up to which sums are kept in float64; beyond, memory counts and damping rules the condition
)

ADDED = 256  # rows of a product that are added in float64 at once: torch copies what it adds into that first
BLOCK = 512  # columns of a matrix with itself that are multiplied at once: what lies above the diagonal is copied

# Where a mean is this many times as large as what varies about it, float32's sums of squares are mostly rounding.
FAR_MEAN = 100
ROUNDING = 2.0**-19  # of float32's own sums, relative: an input that varies by less does not vary


@dataclass(frozen=True)
class Problem:
    """One linear on its calibration inputs x.

    W: [out, in] float32. H: [in, in] second moments of x. What is wanted of the outputs is W x itself, or W y with
    drift: [in, in] ``E[(y - x) x^T]``, or anything with missing: [out, in] ``E[(wanted - W x - b) x^T]``.
    Where the bias takes care of the mean, moments are about it: mean: [in] ``E[x]``. shift: [out]
    ``E[wanted - W x - b]``. The rows and columns of H of inputs that do not vary are then zero.
    """

    W: Tensor
    H: Tensor
    tokens: int
    drift: Tensor | None = None
    missing: Tensor | None = None
    mean: Tensor | None = None
    shift: Tensor | None = None

    def in_basis(self, rows: Callable[[Tensor], Tensor]) -> Problem:
        """Return the problem of outputs that `rows` maps, as far as `bias` asks; it maps [out, in] and [out]."""
        return replace(self, W=rows(self.W), shift=None if self.shift is None else rows(self.shift))

    def bias(self, bias: Tensor, rounded: Tensor) -> Tensor:
        """The bias with which the rounded weights give the wanted outputs on average."""
        if self.mean is None or self.shift is None:
            return bias
        W, Q = self.W.to(self.mean.dtype), rounded.to(self.mean.dtype)
        return (bias.to(self.mean.dtype) + self.shift + (W - Q) @ self.mean).to(bias.dtype)


@dataclass(frozen=True)
class Mean:
    """`value` [hidden], float64: the mean of a LayerNorm's normalised vector on the calibration text."""

    value: Tensor


# What a layer settles next, in order: a linear and its problem, or a LayerNorm and what it normalises; None without a
# calibration text.
Step = tuple[str, Problem | Mean | None]


class Moments:
    """Mean [n] of rows y and ``E[x y^T]`` [m, n] over chunks of rows x and y, of which x may be y.

    With `about_mean`, for what is wanted about the mean, columns whose mean is far larger than what varies about it
    are summed from a row of their own, so that the mean's square does not drown the rest.
    """

    def __init__(self, m: int, n: int, device: torch.device = CPU, *, about_mean: bool = False) -> None:
        self._dtype = torch.float64 if max(m, n) <= DOUBLE_BELOW else torch.float32
        self._sum = torch.zeros(m, n, dtype=self._dtype, device=device)
        self._mean_x = torch.zeros(m, dtype=torch.float64, device=device)
        self._mean_y = torch.zeros(n, dtype=torch.float64, device=device)
        self._count = 0
        self._about_mean, self._same = about_mean, False
        self._lower = False  # above the diagonal blocks nothing is summed yet
        self._from_x: Tensor | None = None  # [m] and [n]: taken off x and y before they are summed; None: nothing
        self._from_y: Tensor | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        # Sums and products of the same numbers, whatever the kernel behind each reads: about the mean of others,
        # moments need not be positive definite.
        same, y = x is y, y.flatten(0, -2)
        x = y if same else x.flatten(0, -2)
        if not self._count:
            self._same, self._lower = same, same and len(self._sum) > BLOCK
        if self._about_mean and not self._count:
            self._from_y = _far_means(y)
            self._from_x = self._from_y if same else _far_means(x)
        y = as_multiplied(y if self._from_y is None else y - self._from_y)
        x = y if same else as_multiplied(x if self._from_x is None else x - self._from_x)
        for rows, columns in self._parts():
            part = self._sum[rows, columns]
            if self._dtype == x.dtype:
                part.addmm_(x[:, rows].T, y[:, columns])
            else:
                product = x[:, rows].T @ y[:, columns]
                for some, more in zip(part.split(ADDED), product.split(ADDED), strict=True):
                    some += more
        of_y = y.sum(0)  # of a chunk in its own dtype: 30 times as fast as in float64, to 2e-7
        self._mean_x += of_y if same else x.sum(0)
        self._mean_y += of_y
        self._count += len(x)

    @property
    def mean(self) -> Tensor:
        """[n] of y, in the dtype of the moments."""
        return _moved(self._mean_y / self._count, self._from_y).to(self._dtype)

    @property
    def mean_x(self) -> Tensor:
        return _moved(self._mean_x / self._count, self._from_x).to(self._dtype)

    def require_finite(self, what: str) -> None:
        """
        Raises:
            NumericsError: some y was a NaN or an infinity; `what` says of what.
        """
        if not torch.isfinite(self.mean).all():
            raise NumericsError(f"{what} hold a NaN or an infinity on the calibration text")

    def second(self) -> Tensor:
        """``E[x y^T]``; the sums are given up for it."""
        x, y = self.mean_x, self.mean
        found = self._mean_product()
        if self._from_x is not None:  # E[x y^T] = E[(x - a)(y - b)^T] + a E[y]^T + E[x - a] b^T
            found.addr_(self._from_x.to(found.dtype), y)
            x = x - self._from_x.to(x.dtype)
        if self._from_y is not None:
            found.addr_(x, self._from_y.to(found.dtype))
        return found

    def _parts(self) -> list[tuple[slice, slice]]:
        """Return rows and columns of what is summed: of x with itself half is enough."""
        if not self._lower:
            return [(slice(None), slice(None))]
        ends = range(BLOCK, len(self._sum) + BLOCK, BLOCK)
        return [(slice(end - BLOCK, end), slice(end)) for end in ends]

    def _mean_product(self) -> Tensor:
        if self._lower:
            for rows, _ in self._parts():
                self._sum[: rows.start, rows] = self._sum[rows, : rows.start].T
            self._lower = False
        self._sum /= self._count
        self._count = 1
        return self._sum

    def centred(self) -> Tensor:
        """``E[(x - mean)(y - mean)^T]``, in place of the sums likewise.

        Of x and y that are the same, the rows and columns of what does not vary, but for rounding, are zero.
        """
        means, mean = (self._mean_x / self._count).to(self._dtype), (self._mean_y / self._count).to(self._dtype)
        whole = self.mean
        centred = self._mean_product().addr_(means, mean, alpha=-1)
        if self._same:
            constant = centred.diagonal() <= (ROUNDING * whole).square()
            if constant.any():
                centred[constant] = 0
                centred[:, constant] = 0
        return centred


def products_with_itself(width: int) -> int:
    """Return how many products a row of so many numbers adds to its second moments: half is enough of a wide one."""
    rows = [min(BLOCK, width - first) for first in range(0, width, BLOCK)]
    return sum(n * last for n, last in zip(rows, accumulate(rows), strict=True))


def _far_means(x: Tensor) -> Tensor | None:
    """The first row [n] of x, in the columns that vary little beside their mean; zero in others, None if all do."""
    variance, mean = torch.var_mean(x, 0, correction=0)
    far = mean.square() > FAR_MEAN**2 * variance
    return torch.where(far, x[0], 0) if far.any() else None


def _moved(mean: Tensor, by: Tensor | None) -> Tensor:
    return mean if by is None else mean + by
