"""The grid that a group of weights is rounded to: ``w = (q - zero_point) * scale`` with q in [0, 2**bits).

Symmetric grids have their zero in the middle, ``2**(bits - 1)``, and ``scale = max|w| / (2**(bits-1) - 1/2)``, GPTQ's
own choice (IST-DASLab/gptq, quant.py). Asymmetric ones span [min(w, 0), max(w, 0)] with an integer zero point.

Given the importance of each column, the span is shrunk to where the weighted squared error of rounding is least: a few
weights are clipped so that the many others lie on a finer grid. A symmetric grid has one code more below its zero than
above, and a negative scale turns it over: the search tries both signs, and gives the code to the side that gains by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.errors import NumericsError
from ..recipe import Scheme

_SHARES = torch.linspace(1.0, 0.3, 21).tolist()  # tried, of the whole span; the first is the grid without clipping
_ASYMMETRIC = [(share, 1.0) for share in _SHARES]
_SYMMETRIC = [(share, sign) for share in _SHARES[::2] for sign in (1.0, -1.0)]  # of share and sign, sign gains more
_LEAST_HALF = 2.0**-24
SEARCHED_AT_ONCE = 1 << 16  # weights: the search goes over them many times, so they should stay in the cache
_SEARCHED_ON_GPU = 1 << 26  # there few calls count


@dataclass(frozen=True)
class Quantized:
    """Codes and grid of one linear.

    q: [out, in] uint8 in [0, 2**bits). scale: [out, groups] float32, of either sign. zero_point: [out, groups] uint8,
    or None where the scheme is symmetric. Column j belongs to group j // columns; the last may be short.
    """

    q: Tensor
    scale: Tensor
    zero_point: Tensor | None
    scheme: Scheme

    @property
    def columns(self) -> int:
        """Columns that share a scale."""
        return self.scheme.columns(self.q.shape[1])

    def dequantize(self) -> Tensor:
        """[out, in] float32."""
        dense = torch.empty_like(self.q, dtype=torch.float32)
        zero = zeros(self)
        for g, (codes, part) in enumerate(
            zip(self.q.split(self.columns, 1), dense.split(self.columns, 1), strict=True)
        ):
            torch.sub(codes, zero[:, g : g + 1], out=part).mul_(self.scale[:, g : g + 1])
        return dense

    def to(self, device: torch.device | str) -> Quantized:
        zero = self.zero_point.to(device) if self.zero_point is not None else None
        return Quantized(self.q.to(device), self.scale.to(device), zero, self.scheme)

    def rows(self, rows: Tensor | slice) -> Quantized:
        """Some rows of it, or all in another order."""
        zero = self.zero_point[rows] if self.zero_point is not None else None
        return Quantized(self.q[rows], self.scale[rows], zero, self.scheme)


def zeros(quantized: Quantized) -> Tensor:
    """Zero points as [out, groups] float32, whether stored or implied."""
    if quantized.zero_point is None:
        return torch.full_like(quantized.scale, quantized.scheme.middle)
    return quantized.zero_point.float()


def find_grid(
    W: Tensor, scheme: Scheme, dtype: torch.dtype = torch.float32, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point, each [out] float32, of one group of columns W [out, n]; importance [n] searches the span.

    Of several groups at once W is [groups, out, n], importance [groups, n], what is found [groups, out].
    The scale is rounded to `dtype`, the one it is stored in, so that rounding to the grid sees what the runtime will.

    Raises:
        NumericsError: W holds a NaN or an infinity, or weights whose scale `dtype` cannot hold.
    """
    if not torch.isfinite(W).all():
        raise NumericsError("a weight is NaN or infinite; it has no grid")
    scale, zero = _spanned(*_ends(W), scheme, dtype)
    if not torch.isfinite(scale).all():
        raise NumericsError(f"a weight of {W.abs().max():.3g} has no scale in {str(dtype).removeprefix('torch.')}")
    if importance is None:
        return scale, zero
    at_once = SEARCHED_AT_ONCE if W.device.type == "cpu" else _SEARCHED_ON_GPU
    rows = max(1, at_once * W.shape[-2] // W.numel())
    parts = [_searched(part, scheme, dtype, importance.to(W.dtype)) for part in W.split(rows, dim=-2)]
    scale, zero = (torch.cat(x, dim=-1) for x in zip(*parts, strict=True))
    return scale, zero


def _ends(W: Tensor) -> tuple[Tensor, Tensor]:
    return W.amin(-1).clamp(max=0), W.amax(-1).clamp(min=0)


def _spanned(low: Tensor, high: Tensor, scheme: Scheme, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The grid from low to high, both [..., out]."""
    scale = (2 * torch.maximum(high, -low) if scheme.symmetric else high - low) / scheme.top
    if dtype == torch.float16:  # rows of small weights need its subnormal numbers as well
        empty, scale = scale == 0, scale.to(dtype).float().clamp(min=_LEAST_HALF)
    else:
        empty, scale = scale < torch.finfo(dtype).tiny, scale.to(dtype).float()
    scale = torch.where(empty, torch.ones_like(scale), scale)
    if scheme.symmetric:
        return scale, torch.full_like(scale, scheme.middle)
    return scale, (-low / scale).round().clamp(0, scheme.top).float()


def _searched(W: Tensor, scheme: Scheme, dtype: torch.dtype, importance: Tensor) -> tuple[Tensor, Tensor]:
    low, high = _ends(W)
    least = torch.full_like(low, torch.inf)
    scale, zero = _spanned(low, high, scheme, dtype)
    symmetric, top = scheme.symmetric, scheme.top
    # The longer side has the code more where both signs are as good: what is yet to be compensated may want it.
    longer = torch.where(high > -low, -1.0, 1.0) if symmetric else torch.ones_like(low)
    for share, sign in _SYMMETRIC if symmetric else _ASYMMETRIC:
        s, z = _spanned(low * share, high * share, scheme, dtype)
        s = s * longer * sign
        step, below = s[..., None].to(W.dtype), z[..., None].to(W.dtype)
        error = (W / step).round_().clamp_(-below, top - below).mul_(step).sub_(W)
        cost = (error.square_() @ importance[..., None]).squeeze(-1)
        better = cost < least  # ties keep the wider span
        least = torch.where(better, cost, least)
        scale, zero = torch.where(better, s, scale), torch.where(better, z, zero)
    return scale, zero


def to_codes(W: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
    """Return the nearest codes, float, same shape as W; scale and zero_point broadcast against it."""
    return (W / scale).add_(zero_point).round_().clamp_(0, scheme.top)
