"""The bytes that com.microsoft.MatMulNBits and GatherBlockQuantized read.

    qweight      uint8 [out, blocks, block_size * bits / 8]   low bits first; short last blocks are filled with zeros
    scales       float [out, blocks]
    zero_points  uint8 [out, ceil(blocks * bits / 8)]         low bits first

A grid of 3 bits is stored in 4: codes keep their values, and a symmetric one is shifted by 4, since the operator's
implied zero is 8. A group of a whole row repeats its scale in every block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..recipe import Scheme
from ..rounding.grid import Quantized
from ..rounding.rtn import rtn


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack uint8 codes < 2**bits along the last axis, low bits first; the tail is filled with zeros."""
    per_byte = 8 // bits
    short = -codes.shape[-1] % per_byte
    if short:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], short), np.uint8)], axis=-1)
    split = codes.reshape(*codes.shape[:-1], -1, per_byte)
    packed = np.zeros(split.shape[:-1], np.uint8)
    for i in range(per_byte):
        packed |= split[..., i] << (i * bits)
    return packed


def unpack_bits(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` codes of the last axis."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    flat: np.ndarray = codes.reshape(*packed.shape[:-1], -1)[..., :count]
    return flat


def pack(quantized: Quantized, block_size: int, dtype: str) -> dict[str, np.ndarray]:
    """`qweight`, `scales` and, for an asymmetric grid, `zero_points`. The group size is a multiple of the block's."""
    out, fan_in = quantized.q.shape
    blocks = -(-fan_in // block_size)
    scheme, columns = quantized.scheme, quantized.columns
    whole_row, stored_bits = columns >= fan_in, scheme.stored_bits
    if not whole_row and columns != block_size:
        raise ValueError(f"groups of {columns} do not fit blocks of {block_size}")
    shift = 2 ** (stored_bits - 1) - scheme.middle if scheme.symmetric else 0
    codes = np.zeros((out, blocks * block_size), np.uint8)
    codes[:, :fan_in] = quantized.q.numpy() + np.uint8(shift)
    group = np.zeros(blocks, np.int64) if whole_row else np.arange(blocks)
    parts = {
        "qweight": pack_bits(codes.reshape(out, blocks, block_size), stored_bits),
        "scales": quantized.scale.numpy()[:, group].astype(dtype),
    }
    if quantized.zero_point is not None:
        parts["zero_points"] = pack_bits(quantized.zero_point.numpy()[:, group], stored_bits)
    return parts


def unpack_codes(parts: dict[str, np.ndarray], fan_in: int, scheme: Scheme, block_size: int) -> Quantized:
    """Return the codes and the grid that `pack` was given."""
    (out, blocks), stored_bits = parts["scales"].shape, scheme.stored_bits
    shift = 2 ** (stored_bits - 1) - scheme.middle if scheme.symmetric else 0
    codes = unpack_bits(parts["qweight"], stored_bits, block_size).reshape(out, blocks * block_size)[:, :fan_in]
    groups = 1 if scheme.columns(fan_in) >= fan_in else blocks
    scale = torch.from_numpy(parts["scales"][:, :groups].astype(np.float32))
    zero = None
    if "zero_points" in parts:
        zero = torch.from_numpy(unpack_bits(parts["zero_points"], stored_bits, blocks)[:, :groups].copy())
    return Quantized(torch.from_numpy(codes - np.uint8(shift)), scale, zero, scheme)


def unpack(parts: dict[str, np.ndarray], fan_in: int, scheme: Scheme, block_size: int) -> Tensor:
    """The float32 matrix [out, in] that the packed operands stand for."""
    (out, blocks), stored_bits = parts["scales"].shape, scheme.stored_bits
    codes = unpack_bits(parts["qweight"], stored_bits, block_size).astype(np.float32)
    if "zero_points" in parts:
        zero: Any = unpack_bits(parts["zero_points"], stored_bits, blocks).astype(np.float32)[..., None]
    else:
        zero = np.float32(2 ** (stored_bits - 1))
    dense = (codes - zero) * parts["scales"].astype(np.float32)[..., None]
    return torch.from_numpy(dense.reshape(out, blocks * block_size)[:, :fan_in].copy())


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
