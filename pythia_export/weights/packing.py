"""The bytes that com.microsoft.MatMulNBits and GatherBlockQuantized read.

    qweight      uint8 [out, blocks, block_size * bits / 8]   low bits first; short last blocks are filled with zeros
    scales       float [out, blocks]
    zero_points  uint8 [out, ceil(blocks * bits / 8)]         low bits first

A grid of 3 bits is stored in 4, or in 3 (`narrow.py`). In 4 codes keep their values, and a symmetric one is shifted by
4, since the operator's implied zero is 8. In 3 nothing is shifted, and zero points are stored in 4 bits. A group of a
whole row repeats its scale in every block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..recipe import Scheme
from ..rounding.grid import Quantized
from ..rounding.rtn import rtn
from .layout import LinearPlan
from .narrow import pack_narrow, unpack_narrow
from .nibbles import pack_bits, unpack_bits


def pack(quantized: Quantized, plan: LinearPlan, dtype: str) -> dict[str, np.ndarray]:
    """Return `qweight`, `scales` and, for an asymmetric grid, `zero_points`. The group size is a multiple of the
    block's."""
    out, fan_in = quantized.q.shape
    columns, blocks = quantized.columns, plan.blocks
    whole_row = columns >= fan_in
    if not whole_row and columns != plan.block_size:
        raise ValueError(f"groups of {columns} do not fit blocks of {plan.block_size}")
    codes = np.zeros((out, blocks * plan.block_size), np.uint8)
    codes[:, :fan_in] = quantized.q.numpy() + np.uint8(shift_of(plan))
    group = np.zeros(blocks, np.int64) if whole_row else np.arange(blocks)
    parts = {
        "qweight": pack_codes(codes, plan),
        "scales": quantized.scale.numpy()[:, group].astype(dtype),
    }
    if quantized.zero_point is not None:
        parts["zero_points"] = pack_zeros(quantized.zero_point.numpy()[:, group], plan)
    return parts


def pack_codes(codes: np.ndarray, plan: LinearPlan) -> np.ndarray:
    """Return codes uint8 [out, blocks * block_size] as the linear stores them."""
    packed = pack_narrow(codes) if plan.is_narrow else pack_bits(codes, plan.stored_bits)
    return packed.reshape(plan.code_shape)


def pack_zeros(zeros: np.ndarray, plan: LinearPlan) -> np.ndarray:
    """Return zero points uint8 [out, blocks] as the linear stores them."""
    return pack_bits(zeros, _zero_bits(plan))


def shift_of(plan: LinearPlan) -> int:
    """Return what is added to a code so that the operator's implied zero is the grid's."""
    wide = plan.scheme.symmetric and not plan.is_narrow
    return 2 ** (plan.stored_bits - 1) - plan.scheme.middle if wide else 0


def _zero_bits(plan: LinearPlan) -> int:
    return 4 if plan.is_narrow else plan.stored_bits


def _codes(parts: dict[str, np.ndarray], plan: LinearPlan) -> np.ndarray:
    """The codes as they are stored, [out, blocks, block_size]."""
    packed = parts["qweight"]
    codes = unpack_narrow(packed) if plan.is_narrow else unpack_bits(packed, plan.stored_bits, plan.block_size)
    return codes.reshape(len(packed), plan.blocks, plan.block_size)


def unpack_codes(parts: dict[str, np.ndarray], plan: LinearPlan) -> Quantized:
    """Return the codes and the grid that `pack` was given."""
    fan_in, scheme = plan.shape[1], plan.scheme
    codes = _codes(parts, plan).reshape(-1, plan.blocks * plan.block_size)[:, :fan_in]
    groups = 1 if scheme.columns(fan_in) >= fan_in else plan.blocks
    scale = torch.from_numpy(parts["scales"][:, :groups].astype(np.float32))
    zero = None
    if "zero_points" in parts:
        zeros = unpack_bits(parts["zero_points"], _zero_bits(plan), plan.blocks)
        zero = torch.from_numpy(zeros[:, :groups].copy())
    return Quantized(torch.from_numpy(codes - np.uint8(shift_of(plan))), scale, zero, scheme)


def unpack(parts: dict[str, np.ndarray], plan: LinearPlan) -> Tensor:
    """The float32 matrix [out, in] that the packed operands stand for."""
    codes = _codes(parts, plan).astype(np.float32)
    if "zero_points" in parts:
        zeros = unpack_bits(parts["zero_points"], _zero_bits(plan), plan.blocks)
        zero: Any = zeros.astype(np.float32)[..., None]
    else:
        zero = np.float32(plan.scheme.middle + shift_of(plan))
    dense = (codes - zero) * parts["scales"].astype(np.float32)[..., None]
    return torch.from_numpy(dense.reshape(len(codes), -1)[:, : plan.shape[1]].copy())


def round_rows(table: Tensor, scheme: Scheme, dtype: str) -> Quantized:
    """Round an embedding [vocab, hidden] on a symmetric grid with a scale for each group along hidden.

    Below 8 bits scales are searched, for a quarter less of squared error.
    """
    return rtn(table, scheme, getattr(torch, dtype), clip=scheme.bits < 8)


def pack_rows(quantized: Quantized, dtype: str) -> dict[str, np.ndarray]:
    """`qweight` uint8 [vocab, hidden * bits / 8] with an implied zero of 2**(bits - 1), and `scales`."""
    packed = pack_bits(quantized.q.numpy(), quantized.scheme.bits)
    return {"qweight": packed, "scales": quantized.scale.numpy().astype(dtype)}


def unpack_rows(parts: dict[str, np.ndarray], hidden: int, scheme: Scheme) -> Tensor:
    """The float32 table [vocab, hidden]."""
    codes = unpack_bits(parts["qweight"], scheme.bits, hidden).astype(np.float32)
    spread = np.repeat(parts["scales"].astype(np.float32), scheme.columns(hidden), axis=1)[:, :hidden]
    return torch.from_numpy((codes - scheme.middle) * spread)
