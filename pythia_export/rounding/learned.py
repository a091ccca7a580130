"""One rounded linear whose scales are trained; its codes and zero points stay.

A weight is ``(code - zero_point) * scale``. What is trained is by what share each scale has `grown`, so that Adam's
steps mean the same to all (EfficientQAT, arXiv 2407.11062, trains scales so, end to end). Codes that follow a gradient
as well (by the straight-through estimator) were tried and left out: benchmarks/README.md has the figures.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .grid import Quantized, zeros


class Learned:
    """What is learned of one linear; `weight()` is its matrix as it is now, with gradients."""

    def __init__(self, start: Quantized) -> None:
        self._start, self._zero = start, zeros(start)
        self.grown = torch.zeros_like(start.scale).requires_grad_()

    def weight(self) -> Tensor:
        """Return the matrix [out, in], float32."""
        start = self._start
        found: Tensor = _Dequantised.apply(  # type: ignore[no-untyped-call]
            start.q, self._zero, start.scale, self.grown, start.columns
        )
        return found

    @torch.no_grad()
    def result(self, share: float, dtype: torch.dtype) -> Quantized:
        """Return the linear with `share` of what was learned; scales as `dtype` holds them."""
        scale = (self._start.scale * (1 + share * self.grown)).to(dtype).float()
        return Quantized(self._start.q, scale, self._start.zero_point, self._start.scheme)


class _Dequantised(torch.autograd.Function):
    """``(q - zero) * scale * (1 + grown)`` by groups of columns; only codes are kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, zero: Tensor, scale: Tensor, grown: Tensor, columns: int) -> Tensor:
        ctx.save_for_backward(q, zero, scale)
        ctx.columns = columns
        found: Tensor = _steps(q, zero, columns).mul_((scale * (1 + grown))[..., None]).flatten(1)[:, : q.shape[1]]
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, zero, scale = ctx.saved_tensors
        of_steps = _by_group(gradients[0], ctx.columns)
        of_grown = _steps(q, zero, ctx.columns).mul_(of_steps).sum(-1).mul_(scale)
        return None, None, None, of_grown, None


def _steps(q: Tensor, zero: Tensor, columns: int) -> Tensor:
    """Return weights in steps of their grid, [out, groups, columns]."""
    return _by_group(q.float(), columns) - zero[..., None]


def _by_group(x: Tensor, columns: int) -> Tensor:
    """Return x [out, in] as [out, groups, columns], the last group filled with zeros."""
    found: Tensor = F.pad(x, (0, -x.shape[1] % columns)).unflatten(1, (-1, columns))
    return found
