"""What rounding one linear needs to know, and the statistics of its inputs that say it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..device import CPU, as_multiplied

DOUBLE_BELOW = (
    4096  # widths up to which sums are kept in float64; beyond, memory counts and damping rules the condition
)


@dataclass(frozen=True)
class Problem:
    """One linear on its calibration inputs x.

    W: [out, in] float32. H: [in, in] second moments of x. What is wanted of the outputs is W x itself, or W y with
    drift: [in, in] ``E[(y - x) x^T]``, or anything with missing: [out, in] ``E[(wanted - W x - b) x^T]``.
    Where the bias takes care of the mean, moments are about it: mean: [in] ``E[x]``. shift: [out]
    ``E[wanted - W x - b]``.
    """

    W: Tensor
    H: Tensor
    tokens: int
    drift: Tensor | None = None
    missing: Tensor | None = None
    mean: Tensor | None = None
    shift: Tensor | None = None

    def bias(self, bias: Tensor, rounded: Tensor) -> Tensor:
        """The bias with which the rounded weights give the wanted outputs on average."""
        if self.mean is None or self.shift is None:
            return bias
        W, Q = self.W.to(self.mean.dtype), rounded.to(self.mean.dtype)
        return (bias.to(self.mean.dtype) + self.shift + (W - Q) @ self.mean).to(bias.dtype)


class Moments:
    """Mean [n] of rows y and ``E[x y^T]`` [m, n] over chunks of rows x and y, of which x may be y."""

    def __init__(self, m: int, n: int, device: torch.device = CPU) -> None:
        self._dtype = torch.float64 if max(m, n) <= DOUBLE_BELOW else torch.float32
        self._sum = torch.zeros(m, n, dtype=self._dtype, device=device)
        self._mean_x = torch.zeros(m, dtype=torch.float64, device=device)
        self._mean_y = torch.zeros(n, dtype=torch.float64, device=device)
        self._count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        # Sums and products of the same numbers, whatever the kernel behind each reads: about the mean of others,
        # moments need not be positive definite.
        same, y = x is y, as_multiplied(y.flatten(0, -2))
        x = y if same else as_multiplied(x.flatten(0, -2))
        if self._dtype == x.dtype:
            self._sum.addmm_(x.T, y)
        else:
            self._sum += x.T @ y
        of_y = y.sum(0)  # of a chunk in its own dtype: 30 times as fast as in float64, to 2e-7
        self._mean_x += of_y if same else x.sum(0)
        self._mean_y += of_y
        self._count += len(x)

    @property
    def mean(self) -> Tensor:
        """[n] of y, in the dtype of the moments."""
        return (self._mean_y / self._count).to(self._dtype)

    @property
    def mean_x(self) -> Tensor:
        return (self._mean_x / self._count).to(self._dtype)

    def second(self) -> Tensor:
        """``E[x y^T]``; the sums are given up for it."""
        self._sum /= self._count
        self._count = 1
        return self._sum

    def centred(self) -> Tensor:
        """``E[(x - mean)(y - mean)^T]``, in place of the sums likewise."""
        mean_x, mean = self.mean_x, self.mean
        return self.second().addr_(mean_x, mean, alpha=-1)
