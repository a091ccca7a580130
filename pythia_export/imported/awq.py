"""AWQ's format (AutoAWQ's `gemm`), and that of AutoRound's asymmetric grids.

    qweight  int32 [in, out / 8]        4 bits; the outputs of a word in the order 0 2 4 6 1 3 5 7, lowest bits first
    qzeros   int32 [groups, out / 8]    zero points as they are, in the same order
    scales   float [groups, out]

https://github.com/casper-hansen/AutoAWQ/blob/main/awq/utils/packing_utils.py
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AliasChoices, Field

from ..base.errors import SourceError
from ..records.record import Record, checked
from ..weights.nibbles import pack_bits
from .stored import FLOATS, SAVE_AGAIN, Arrays, Grid, Part, Stored, codes_of, stream_of

METHODS = ("awq",)
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of each output of eight, its number in the word


class Settings(Record):
    """What `quantization_config` says, as far as it is about what is stored."""

    bits: Annotated[Literal[4], Field(validation_alias=AliasChoices("bits", "w_bit"))]
    group_size: Annotated[int, Field(ge=-1, validation_alias=AliasChoices("group_size", "q_group_size"))]
    version: str = "gemm"
    zero_point: bool = True
    autoround_version: str | None = None


def read(raw: dict[str, Any], where: str) -> Awq:
    """Read a configuration of this format.

    Raises:
        SourceError: a variant of it that stores something else.
        IntegrityError: a setting that is missing or no such setting.
    """
    settings = checked(Settings, raw, where, SAVE_AGAIN)
    if settings.version.lower() != "gemm" or not settings.zero_point:
        what = f"the version {settings.version!r}" if settings.zero_point else "no zero points"
        raise SourceError(
            f"{where}: AWQ with {what}; the version 'gemm' with zero points was expected",
            hint="Quantise it again with AutoAWQ and version='GEMM', zero_point=True.",
        )
    made_by = settings.autoround_version
    return Awq("awq", None if made_by is None else f"auto-round {made_by}", Grid(4, settings.group_size, False))


@dataclass(frozen=True)
class Awq:
    """One checkpoint's settings: one grid for all. `name` and `tool` as in `Format`."""

    name: str
    tool: str | None
    of_all: Grid

    def grid(self, linear: str, there: Collection[str]) -> Grid | None:
        return self.of_all if "qweight" in there else None

    def parts(self, grid: Grid, shape: tuple[int, int]) -> dict[str, Part]:
        out, fan_in = shape
        groups = grid.groups(fan_in)
        return {
            "qweight": Part(("I32",), (fan_in, out // 8)),
            "qzeros": Part(("I32",), (groups, out // 8)),
            "scales": Part(FLOATS, (groups, out)),
        }

    def groups(self, arrays: Arrays) -> np.ndarray | None:
        return None

    def stored(self, grid: Grid, shape: tuple[int, int], arrays: Arrays) -> Stored:
        codes = np.ascontiguousarray(_in_order(arrays["qweight"]).T)
        return Stored(grid, shape[1], pack_bits(codes, 4), arrays["scales"].T, _in_order(arrays["qzeros"]).T)


def _in_order(words: np.ndarray) -> np.ndarray:
    """Return the numbers of words [rows, n], [rows, 8 n] uint8, each where its output is."""
    found = codes_of(stream_of(words), 4, 8 * words.shape[1])
    return found.reshape(len(words), -1, 8)[:, :, _PLACES].reshape(len(words), -1)
