"""Codes of 3 bits in 3 bits: three nibbles of four hold a code each, and their spare bits hold a fourth.

A row of a matrix is cut into chunks of four pieces of ``2 * plane`` codes. The first three pieces are stored as those
of 4 bits are, two codes in a byte, the low half first: three planes of `plane` bytes. A code of 3 bits leaves the top
bit of its half free. There the fourth piece is stored: bit 0 of its codes in the first plane, bit 1 in the second, bit
2 in the third, at the place of the code in its piece.

    codes   uint8 [..., columns]
    packed  uint8 [..., columns / (8 * plane), 3, plane]

So three of four pieces are unpacked by a mask, and the fourth by three shifts. `plane` is 64 where the length of a row
allows it, a vector of AVX-512, and otherwise 32 or 16.
"""

from __future__ import annotations

import numpy as np

from .nibbles import pack_bits, unpack_bits

NARROW = 128  # what the length of a row is a multiple of: the codes of the shortest chunk
_PLANES = (64, 32, 16)
_SHIFTS = np.arange(3, dtype=np.uint8)[:, None]


def narrow_shape(columns: int) -> tuple[int, int, int]:
    """Return the shape of a packed row: chunks, 3, plane. `columns` is a multiple of `NARROW`."""
    plane = next(plane for plane in _PLANES if columns % (8 * plane) == 0)
    return columns // (8 * plane), 3, plane


def pack_narrow(codes: np.ndarray) -> np.ndarray:
    """Pack codes below 8, uint8 [..., columns]."""
    chunks, _, plane = narrow_shape(codes.shape[-1])
    nibbles = pack_bits(codes, 4).reshape(*codes.shape[:-1], chunks, 4, plane)
    spare = (nibbles[..., 3:, :] >> _SHIFTS & np.uint8(0x11)) << np.uint8(3)
    packed: np.ndarray = nibbles[..., :3, :] | spare
    return packed


def widen(packed: np.ndarray) -> np.ndarray:
    """Return packed codes as those of 4 bits are packed: uint8 [..., columns / 2]."""
    fourth = np.bitwise_or.reduce((packed >> np.uint8(3) & np.uint8(0x11)) << _SHIFTS, axis=-2, keepdims=True)
    return np.concatenate([packed & np.uint8(0x77), fourth], axis=-2).reshape(*packed.shape[:-3], -1)


def unpack_narrow(packed: np.ndarray) -> np.ndarray:
    """Return the codes [..., columns]."""
    wide = widen(packed)
    return unpack_bits(wide, 4, 2 * wide.shape[-1])
