"""GPTQ (Frantar et al. 2023, arXiv 2210.17323): round one column after another, and let the columns that are still
free make up for the error, as far as the inputs' second moments ``H = E[x x^T]`` allow.

The paper inverts H, then factors the inverse. One Cholesky factor of H itself is enough: with ``H + damp = L L^T`` and
E = W - Q, the loss is ``tr(E H E^T) = |E L|^2``, and the k-th column of ``E L`` vanishes when w_k is rounded from

    w_k + sum_{j > k} E_j L_jk / L_kk,

so columns are taken from the last place to the first, each from its weights and the errors already made. The outcome
is GPTQ's (QuIP, arXiv 2307.13304, theorem 6, shows the equivalence for the L D L^T form); the cost is a third of one
inversion, and no matrix beside H and L is held.

Five things differ from the paper's code:

- act-order keeps groups static: columns are visited by falling diag(H), but each is rounded to the grid of the group it
  is stored in, so nothing has to be permuted at run time;
- without act-order the scale of a group is taken when the group begins, from columns that carry all compensation so
  far, not from columns that are stale inside a block;
- the search for a scale weights each column by ``L_kk^2``, what its rounding error adds to the loss after all the
  compensation that is still to come, where others take diag(H);
- what is left to make up for moves with the grid, which no search before the first column knows: with `effort =
  "best"` each row is rounded on grids of several widths, and the one is taken by which its loss is least in the end;
- a Hessian that is not positive definite climbs a damping ladder, recorded, and fails by name at its end.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.errors import NumericsError
from ..recipe import Quantize, Scheme
from .columns import Beam, Nearest, Rounding
from .grid import SEARCHED_AT_ONCE, Quantized, find_grid

WEIGHTS_AT_ONCE = 1 << 22
STATES = 8192  # roundings that a beam carries on at once: enough to be worth a call, few enough to stay in the cache
WEIGHTS_ON_GPU = 1 << 28  # at once: a head of the suite's in one go
MASSIVE = 100.0  # times the median of what inputs are on average, squared
SHARED_OUT = 1 << 22  # weights from which threads gain more than they lose by waiting for each other


@dataclass(frozen=True)
class Factor:
    """``(H + damp * mean(diag H) I)[order][:, order] = unit L L^T``, the mean that of inputs which are not dead.

    L: [in, in] lower, in H's dtype. order: [in], the column at each place; columns are rounded from the last place to
    the first. dead: [in] bool, columns whose input is always zero. damp: relative, the one that worked. unit: a power
    of 4 near the mean, so that squares of L neither overflow nor vanish, and no bit of anything else changes.
    """

    L: Tensor
    order: Tensor
    dead: Tensor
    act_order: bool
    damp: float
    unit: float = 1.0

    @cached_property
    def single(self) -> Tensor:
        """L in float32: rows are rounded by it in several passes."""
        return self.L.to(torch.float32)

    @property
    def importance(self) -> Tensor:
        """[in]: what a unit of squared rounding error in each column adds to the loss of GPTQ's outcome."""
        importance = torch.empty_like(self.order, dtype=self.L.dtype)
        importance[self.order] = self.L.diagonal().square()
        return importance


def factor(H: Tensor, settings: Quantize) -> Factor:
    """Factor H [in, in], float32 or float64; `damp` doubles until H is positive definite, at most to `max_damp`.

    Raises:
        NumericsError: H holds a NaN or an infinity, or no damping up to max_damp makes it positive definite.
    """
    if not torch.isfinite(H).all():
        raise NumericsError("the Hessian holds a NaN or an infinity: an activation overflowed")
    act_order, damp, max_damp = settings.act_order, settings.damp, settings.max_damp
    diagonal = H.diagonal()
    dead = diagonal <= 0  # an input that is always zero: any weight is exact, and zero is the cheapest
    mean = _usual(diagonal[~dead]) if not dead.all() else torch.ones_like(diagonal[0])
    diagonal = torch.where(dead, mean, diagonal)
    unit = _power_of_4(float(mean))
    columns = torch.arange(len(H), device=H.device)
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else columns
    order = order.flip(0)
    while True:
        L = H[order[:, None], order]
        L.diagonal().copy_((diagonal + damp * mean)[order])
        L /= unit
        info = torch.zeros((), dtype=torch.int32, device=H.device)
        torch.linalg.cholesky_ex(L, out=(L, info))
        if not info and torch.isfinite(L.diagonal()).all():
            return Factor(L, order, dead, act_order, damp, unit)
        if damp * 2 > max_damp * (1 + 1e-9):
            raise NumericsError(
                f"the Hessian is not positive definite even with damp {damp:g} (max_damp {max_damp:g})",
                hint="Calibrate on more tokens, raise `quantize.max_damp`, or give this linear method = 'rtn'.",
            )
        damp *= 2


def _usual(diagonal: Tensor) -> Tensor:
    """The mean, of which a few massive inputs take no more than `MASSIVE` medians each: one that a single token makes a
    million times as large would else damp all the others away."""
    return diagonal.clamp(max=MASSIVE * diagonal.median()).mean()


def _power_of_4(x: float) -> float:
    """The nearest one that a float32's square holds; 1 for what is not a positive number."""
    return 4.0 ** min(62, max(-62, round(math.log(x, 4)))) if 0 < x < math.inf else 1.0


def gptq(
    W: Tensor,
    factor: Factor,
    scheme: Scheme,
    settings: Quantize,
    scale_dtype: torch.dtype = torch.float32,
) -> Quantized:
    """Quantise W [out, in] against a factored Hessian, onto the grid of `scheme`, whose scales have `scale_dtype`.

    Of the settings, `clip` searches each scale, and the best `beam` roundings of each row are carried on from column to
    column; 1 is GPTQ. The whole is done once with each of `stretches`, and each row takes the one of least loss.

    Computes in W's dtype, float32 or float64, on W's device, where the factor lies as well.

    Raises:
        NumericsError: W holds a NaN or an infinity, or numbers so large that the squares of their errors overflow.
    """
    if not torch.isfinite(W).all():
        raise NumericsError("a weight, or what it has to make up for, is NaN or infinite")
    L = factor.single if W.dtype == torch.float32 else factor.L.to(W.dtype)
    importance = factor.importance.to(W.dtype) if settings.clip else None
    size, beam = scheme.columns(W.shape[1]), settings.beam
    grids = [_Grid(scheme, size, importance, scale_dtype, stretch) for stretch in settings.stretches]
    threads = torch.get_num_threads()
    if W.device.type == "cpu":
        # Rows do not meet: a few at a time need little memory, and with many each thread has its own. One step of the
        # loop over columns is too little to be shared out.
        workers = threads if W.numel() * beam >= SHARED_OUT else 1
        rows = min(-(-len(W) // workers), max(1, WEIGHTS_AT_ONCE // W.shape[1]))
        if beam > 1:
            rows = min(rows, max(1, STATES // beam))
    else:  # a step over columns costs a GPU the same for few rows as for many
        workers, rows = 1, max(1, WEIGHTS_ON_GPU // W.shape[1])
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            run = pool.map if workers > 1 else map
            parts = list(run(lambda part: _best_rows(part, L, factor, grids, beam), W.split(rows)))
    finally:
        torch.set_num_threads(threads)
    q, scale, zero = (torch.cat(x) for x in zip(*parts, strict=True))
    return Quantized(q, scale, None if scheme.symmetric else zero, scheme)


@dataclass(frozen=True)
class _Grid:
    """Where the groups of a row get their scales from; `size` columns have one. What is found is stretched."""

    scheme: Scheme
    size: int
    importance: Tensor | None
    dtype: torch.dtype
    stretch: float = 1.0

    def find(self, group: int, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point [out] of a group from its columns [columns, out]."""
        first = group * self.size
        weights = None if self.importance is None else self.importance[first : first + len(columns)]
        return self._stretched(*find_grid(columns.T, self.scheme, self.dtype, weights))

    def _stretched(self, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
        """Return a grid with its steps longer or shorter, as they are stored."""
        if self.stretch == 1:
            return scale, zero
        stretched = (scale * self.stretch).to(self.dtype).float()
        return torch.where(stretched.isfinite(), stretched, scale), zero

    def find_all(self, free: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and zero points [groups, out] of all groups; their columns [in, out] lie at `place` in `free`."""
        # A GPU takes them in one go, a CPU as many as its cache holds: of few rows a call costs more than its numbers.
        at_once = len(place)
        if free.device.type == "cpu":
            at_once = self.size * max(1, SEARCHED_AT_ONCE // (self.size * free.shape[1]))
        found = [self._find_some(first, free[some]) for first, some in zip(count(0, at_once), place.split(at_once))]
        scale, zero = (torch.cat(x) for x in zip(*found, strict=True))
        return scale, zero

    def _find_some(self, first: int, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and zero points [groups, out] of the groups that begin at column `first`."""
        size, last = self.size, first + len(columns)
        if len(columns) <= size:
            return tuple(x[None] for x in self.find(first // size, columns))  # type: ignore[return-value]
        short = -len(columns) % size  # the last one is filled up by zeros, which change nothing
        groups = F.pad(columns.T, (0, short)).unflatten(1, (-1, size)).transpose(0, 1)
        weights = None if self.importance is None else self.importance[first:last]
        weights = None if weights is None else F.pad(weights, (0, short)).unflatten(0, (-1, size))
        return self._stretched(*find_grid(groups, self.scheme, self.dtype, weights))


def _best_rows(W: Tensor, L: Tensor, factor: Factor, grids: list[_Grid], beam: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return `_rows` of some rows, each on the grid by which its loss is least."""
    best = _rows(W, L, factor, grids[0], beam)
    if len(grids) == 1:
        return best
    least = _cost(W, L, factor, grids[0], best)
    for grid in grids[1:]:
        other = _rows(W, L, factor, grid, beam)
        cost = _cost(W, L, factor, grid, other)
        better = cost < least
        least = torch.where(better, cost, least)
        best = tuple(torch.where(better[:, None], a, b) for a, b in zip(other, best, strict=True))  # type: ignore[assignment]
    return best


def _cost(W: Tensor, L: Tensor, factor: Factor, grid: _Grid, found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return ``|e L|^2`` [out] of each row, as far as it is of any input that is not dead."""
    q, scale, zero = (x.to(W.dtype) for x in found)
    wide = [x.repeat_interleave(grid.size, 1)[:, : W.shape[1]] for x in (scale, zero)]
    E = torch.where(factor.dead, 0.0, W - (q - wide[1]) * wide[0])
    return (E[:, factor.order] @ L).square().sum(1)


def _rows(W: Tensor, L: Tensor, factor: Factor, grid: _Grid, beam: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [out, in] uint8, scales [out, groups] float32 and zero points [out, groups] uint8 of some rows."""
    torch.set_num_threads(1)
    (out, fan_in), size, order = W.shape, grid.size, factor.order
    # Columns lie as rows in the order of their places, so that the loop reads and writes whole runs of memory.
    free = torch.where(factor.dead, 0.0, W).T[order].contiguous()
    place = torch.empty_like(order)
    place[order] = torch.arange(fan_in, device=W.device)
    groups, group = -(-fan_in // size), torch.div(order, size, rounding_mode="floor")  # their number, and each place's
    if factor.act_order:
        scale, zero = (x.to(W.dtype) for x in grid.find_all(free, place))
    else:
        scale, zero = (torch.empty(groups, out, dtype=W.dtype, device=W.device) for _ in range(2))
    rounding: Rounding = Nearest(free, L, grid.scheme) if beam == 1 else Beam(free, L, grid.scheme, beam)
    columns, edges = order.tolist(), set(range(fan_in, 0, -rounding.block))
    if not factor.act_order:
        edges |= {fan_in - g * size for g in range(groups)}  # a block begins where a group does
    ends = sorted(edges, reverse=True)
    for last, first in zip(ends, [*ends[1:], 0], strict=True):
        if not factor.act_order and columns[last - 1] % size == 0:
            low = max(0, last - size)  # the group's columns, in falling order of place
            fresh = free[low:last]
            if last < fan_in:
                owed = L[last:, low:last].T @ rounding.errors(last)
                fresh = fresh + torch.linalg.solve_triangular(L[low:last, low:last].T, owed, upper=True)
            g = columns[last - 1] // size
            scale[g], zero[g] = grid.find(g, fresh.flip(0))
        rounding.round(first, last, scale[group[first:last]], zero[group[first:last]])
    return rounding.codes()[place].T.contiguous(), scale.T.float().contiguous(), zero.T.to(torch.uint8).contiguous()


def fitted_share(fan_in: int, tokens: int) -> float:
    """A fit of `fan_in` weights to n tokens explains fan_in/n of pure noise: what is left of its step."""
    return max(0.0, 1 - fan_in / tokens)


def correction(missing: Tensor, factor: Factor, tokens: int) -> Tensor:
    """What to add to the weights so that they fit the wanted outputs best: ``missing (H + damp)^-1`` [out, in].

    `missing` [out, in] is ``E[(wanted - W x) x^T]``. The quadratic loss around the weights so found has the same H, so
    to round them instead of W corrects the error of what came before (GPTAQ, arXiv 2504.02692; Qronos, arXiv
    2505.11695). The step is shortened to its `fitted_share`.
    """
    share = fitted_share(len(factor.L), tokens)
    step = torch.empty_like(missing)
    step[:, factor.order] = torch.cholesky_solve(missing[:, factor.order].T / factor.unit, factor.L).T.mul_(share)
    step[:, factor.dead] = 0
    return step


def row_errors(E: Tensor, H: Tensor) -> Tensor:
    """``e H e^T`` [out], float64, of every row e of E [out, in]."""
    return torch.sum((E @ H.to(E.dtype)) * E, dim=1, dtype=torch.float64)
