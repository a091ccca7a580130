"""How another quantiser's grid is stored for MatMulNBits, whose blocks are 16 to 256 columns that follow one another.

What fits, exactly: groups of a multiple of such a block, which repeat their scale; a scale a row; groups in another
order than the columns', if each block of columns is of one group; bits that the operator lacks, in more that it has.
What does not: groups of fewer columns, and groups of columns that are scattered over the row, as GPTQ's act-order
leaves them without static groups.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from ..recipe import Scheme
from ..recipe.scheme import Bits, GroupSize
from ..weights.layout import LinearPlan
from ..weights.packing import pack_codes, pack_zeros, shift_of
from .stored import Grid, Stored

BLOCKS = (256, 128, 64, 32, 16)
_BITS = {1: 2, 2: 2, 3: 3, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}


def scheme_of(grid: Grid, fan_in: int, groups: np.ndarray | None) -> Scheme | None:
    """Return how a linear of this grid is stored without rounding; None where that cannot be. `groups` [in] are those
    of the columns, where they do not follow one another."""
    if grid.groups(fan_in) == 1:
        size = -1
    else:
        of = np.arange(fan_in) // grid.group_size if groups is None else groups
        size = next((block for block in BLOCKS if _is_whole(of, block)), 0)
    if not size:
        return None
    return Scheme(bits=cast("Bits", _BITS[grid.bits]), group_size=cast("GroupSize", size), symmetric=grid.symmetric)


def _is_whole(groups: np.ndarray, block: int) -> bool:
    """Return whether each block of columns is of one group."""
    firsts = np.repeat(groups[::block], block)[: len(groups)]
    return bool((firsts == groups).all())


def nearest_scheme(grid: Grid, bits: Bits) -> Scheme:
    """Return the scheme of `bits` that is most like a grid which does not fit."""
    size = next((block for block in BLOCKS if block <= grid.group_size), BLOCKS[-1])
    return Scheme(bits=bits, group_size=cast("GroupSize", size), symmetric=grid.symmetric)


def operands(stored: Stored, plan: LinearPlan, groups: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return what the product reads: `qweight`, `scales` float32 and, for an asymmetric grid, `zero_points`."""
    grid, bits, fan_in = stored.grid, plan.stored_bits, stored.fan_in
    width = plan.blocks * plan.block_size
    if grid.bits == bits != 3:
        packed = stored.stream[:, : fan_in * bits // 8]
        if packed.shape[1] * 8 < width * bits:
            packed = np.pad(packed, ((0, 0), (0, width * bits // 8 - packed.shape[1])))
        packed = packed.reshape(plan.code_shape)
    else:
        middle = np.uint8(shift_of(plan) + plan.scheme.middle - (1 << (grid.bits - 1)) if grid.symmetric else 0)
        packed = pack_codes(np.pad(stored.codes() + middle, ((0, 0), (0, width - fan_in))), plan)
    firsts = np.arange(plan.blocks) * plan.block_size
    index = column_groups(grid, fan_in, groups)[firsts]
    found = {
        "qweight": packed,
        "scales": np.ascontiguousarray(stored.scale[:, index], np.float32),
    }
    if stored.zero_point is not None:
        found["zero_points"] = pack_zeros(np.ascontiguousarray(stored.zero_point[:, index]), plan)
    return found


def column_groups(grid: Grid, fan_in: int, groups: np.ndarray | None) -> np.ndarray:
    """Return the group of each column [in]."""
    if groups is not None:
        return groups
    return np.arange(fan_in) // grid.group_size if grid.group_size > 0 else np.zeros(fan_in, np.int64)


def dequantised(stored: Stored, groups: np.ndarray | None) -> np.ndarray:
    """Return the matrix [out, in] float32 that the codes stand for."""
    of = column_groups(stored.grid, stored.fan_in, groups)
    middle = np.float32(1 << (stored.grid.bits - 1))
    zero = middle if stored.zero_point is None else stored.zero_point[:, of].astype(np.float32)
    found: np.ndarray = (stored.codes().astype(np.float32) - zero) * stored.scale[:, of]
    return found
