"""One linear as another quantiser stored it, in one form for all formats; and what a format has to say.

``w = (q - zero_point) * scale`` with q in [0, 2**bits). Most formats pack codes into words of 32 bits, of whose bytes
the lowest comes first. Then the words of a row are one stream of bits, lowest first, without gaps, and so are the bytes
that MatMulNBits reads: at 2, 4 and 8 bits they are the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ..base.errors import IntegrityError
from ..base.strict_json import shown
from ..weights.nibbles import unpack_bits

Arrays = Mapping[str, np.ndarray]  # of one linear, by the last part of their names; floats as float32
FLOATS = ("F16", "BF16", "F32")
SAVE_AGAIN = "Save the checkpoint again with the tool that quantised it."
MATCH = (
    "The configuration is not of these weights. Copy both again from one place, or save the checkpoint again with the "
    "tool that quantised it."
)


@dataclass(frozen=True)
class Grid:
    """How one linear is rounded, by the checkpoint's configuration: 1 to 8 bits; a group of -1 is the whole row. A
    symmetric grid has its zero at ``2**(bits - 1)``."""

    bits: int
    group_size: int
    symmetric: bool

    @classmethod
    def checked(cls, bits: object, group_size: object, symmetric: object, where: str) -> Grid:
        """
        Raises:
            IntegrityError: they are no such settings; `where` says whose.
        """
        if type(bits) is not int or not 1 <= bits <= 8:
            raise IntegrityError(f"{where}: {shown(bits)} bits; 1 to 8 were expected", hint=SAVE_AGAIN)
        if type(group_size) is not int or not (group_size == -1 or 0 < group_size < 1 << 31):
            raise IntegrityError(
                f"{where}: group_size is {shown(group_size)}; -1 or more than 0 was expected", hint=SAVE_AGAIN
            )
        if type(symmetric) is not bool:
            raise IntegrityError(
                f"{where}: a grid's symmetry is {shown(symmetric)}; true or false was expected", hint=SAVE_AGAIN
            )
        return cls(bits, group_size, symmetric)

    def groups(self, fan_in: int) -> int:
        """Return how many scales a row has."""
        return -(-fan_in // self.group_size) if self.group_size > 0 else 1

    def __str__(self) -> str:
        group = "a scale a row" if self.group_size < 0 else f"groups of {self.group_size}"
        return f"{self.bits} bits, {group}{'' if self.symmetric else ', asymmetric'}"


@dataclass(frozen=True)
class Part:
    """One tensor that a format stores of a linear: dtypes as safetensors spells them, and the shape that it must have.
    None of a shape is whatever is there; one that is not `needed` may be missing."""

    dtypes: tuple[str, ...]
    shape: tuple[int | None, ...]
    needed: bool = True


@dataclass(frozen=True)
class Stored:
    """The codes of one linear [out, in] and their grid.

    stream: [out, at least in * bits / 8] uint8, the codes of a row as a stream of bits, lowest first, without gaps.
    scale: [out, groups] float32. zero_point: [out, groups] uint8; None where the grid is symmetric.
    """

    grid: Grid
    fan_in: int
    stream: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None

    def codes(self) -> np.ndarray:
        """Return them apart, [out, in] uint8."""
        return codes_of(self.stream, self.grid.bits, self.fan_in)


class Format(Protocol):
    """What one checkpoint's configuration says, as a format's module reads it."""

    @property
    def name(self) -> str:
        """For people and for manifests: `gptq_v2`."""
        ...

    @property
    def tool(self) -> str | None:
        """Who wrote it, `gptqmodel 7.7.0`, as far as the checkpoint tells."""
        ...

    def grid(self, linear: str, there: Collection[str]) -> Grid | None:
        """Return how a linear is rounded, by its name in the file; `there` are the last parts of its tensors' names.
        None: it is left in float.

        Raises:
            IntegrityError: the configuration says otherwise than what is there.
        """
        ...

    def parts(self, grid: Grid, shape: tuple[int, int]) -> dict[str, Part]:
        """Return the tensors that a linear [out, in] of this grid has, by the last part of their names."""
        ...

    def groups(self, arrays: Arrays) -> np.ndarray | None:
        """Return the group of each column [in], from the tensors of `order`; None: columns follow one another."""
        ...

    def stored(self, grid: Grid, shape: tuple[int, int], arrays: Arrays) -> Stored:
        """Return what the tensors of a linear [out, in] stand for.

        Raises:
            IntegrityError: they hold what this format cannot.
        """
        ...


ORDER = ("g_idx", "weight_g_idx")  # the tensors that say which group a column belongs to


def stream_of(words: np.ndarray) -> np.ndarray:
    """Return words [rows, n] int32 as streams of bits, [rows, 4 n] uint8."""
    words = words.astype("<i4", copy=False)
    if not words.flags.c_contiguous:
        words = torch.from_numpy(words).contiguous().numpy()  # transposed in a quarter of numpy's time
    return words.view(np.uint8)


def codes_of(stream: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the first `count` numbers of `bits` bits of each stream, [rows, count] uint8."""
    if bits in (1, 2, 4, 8):
        return unpack_bits(stream, bits, count)
    spread = np.unpackbits(stream, axis=1, count=count * bits, bitorder="little")
    weights = (1 << np.arange(bits)).astype(np.uint8)
    found: np.ndarray = (spread.reshape(len(stream), count, bits) * weights).sum(axis=2, dtype=np.uint8)
    return found


def matches(pattern: str, name: str, where: str) -> bool:
    """Return whether a regular expression of a configuration matches the start of a name.

    Raises:
        IntegrityError: it is none.
    """
    try:
        return re.match(pattern, name) is not None
    except re.error as e:
        raise IntegrityError(
            f"{where}: {shown(pattern)} is no pattern: {e}; a regular expression of Python was expected",
            hint=SAVE_AGAIN,
        ) from None
