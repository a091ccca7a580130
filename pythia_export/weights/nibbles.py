"""Codes of 2, 4 or 8 bits in bytes, low bits first."""

from __future__ import annotations

import numpy as np


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
