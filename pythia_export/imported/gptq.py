"""GPTQ's format, of AutoGPTQ, GPTQModel, AutoRound and others.

    qweight  int32 [in * bits / 32, out]        codes of a column of `out`, one after another
    qzeros   int32 [groups, out * bits / 32]    zero points of a group; of `gptq` less one, of `gptq_v2` as they are
    scales   float [groups, out]
    g_idx    int32 [in]                         the group of each input; not always there

Zero points less one cannot hold a zero. GPTQModel subtracts from whole words, so that it borrows from the next number,
and adding to whole words restores both. Others store something else in its place, and readers differ: such a number,
all of its bits set, is refused.

https://github.com/ModelCloud/GPTQModel/blob/main/gptqmodel/utils/model.py (convert_gptq_v1_to_v2_format_module)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import AliasChoices, Field

from ..base.errors import IntegrityError, SourceError
from ..records.record import Json, Record, checked
from .stored import FLOATS, SAVE_AGAIN, Arrays, Grid, Part, Stored, codes_of, matches, stream_of

METHODS = ("gptq",)
_OFFSETS = {"gptq": 1, "gptq_v2": 0}


class Settings(Record):
    """What `quantization_config` says, as far as it is about what is stored."""

    bits: Annotated[int, Field(ge=2, le=8)]
    group_size: Annotated[int, Field(ge=-1)] = 128
    sym: bool = True
    desc_act: bool = False
    form: Annotated[str, Field(validation_alias=AliasChoices("checkpoint_format", "format"))] = "gptq"
    pack_dtype: str = "int32"
    dynamic: Json | None = None
    """Settings by patterns of names, `-:` before those that are left in float."""
    is_marlin_format: bool = False
    autoround_version: str | None = None
    meta: Json | None = None


def read(raw: dict[str, Any], where: str) -> Gptq:
    """Read a configuration of this format.

    Raises:
        SourceError: a variant of it that stores something else.
        IntegrityError: a setting that is missing or no such setting.
    """
    settings = checked(Settings, raw, where, SAVE_AGAIN)
    form = "marlin" if settings.is_marlin_format else settings.form
    if form not in _OFFSETS or settings.pack_dtype != "int32":
        what = f"the format {form!r}" if form not in _OFFSETS else f"words of {settings.pack_dtype!r}"
        raise SourceError(
            f"{where}: GPTQ in {what}; {' or '.join(map(repr, _OFFSETS))} in words of 'int32' was expected",
            hint="Save it as one of these with its own tool (GPTQModel: QuantizeConfig(format=...)).",
        )
    return Gptq(form, _tool(settings), settings, where)


def _tool(settings: Settings) -> str | None:
    if settings.autoround_version is not None:
        return f"auto-round {settings.autoround_version}"
    named = (settings.meta or {}).get("quantizer")
    first = named[0] if isinstance(named, list) and named else named
    return first.replace(":", " ") if isinstance(first, str) else None


@dataclass(frozen=True)
class Gptq:
    """One checkpoint's settings. `name` and `tool` as in `Format`."""

    name: str
    tool: str | None
    settings: Settings
    where: str

    def grid(self, linear: str, there: Collection[str]) -> Grid | None:
        if "qweight" not in there:
            return None
        of = self.settings
        own: Json = {}
        for pattern, changes in (of.dynamic or {}).items():
            if matches(pattern.removeprefix("+:"), linear, f"{self.where}: dynamic"):
                own = changes if isinstance(changes, dict) else {}
                break
        bits, group_size, sym = own.get("bits", of.bits), own.get("group_size", of.group_size), own.get("sym", of.sym)
        return Grid.checked(bits, group_size, sym, f"{self.where}: {linear}")

    def parts(self, grid: Grid, shape: tuple[int, int]) -> dict[str, Part]:
        out, fan_in = shape
        groups = grid.groups(fan_in)
        return {
            "qweight": Part(("I32",), (fan_in * grid.bits // 32, out)),
            "qzeros": Part(("I32",), (groups, out * grid.bits // 32)),
            "scales": Part(FLOATS, (groups, out)),
            "g_idx": Part(("I32",), (fan_in,), needed=self.settings.desc_act),
        }

    def groups(self, arrays: Arrays) -> np.ndarray | None:
        return arrays.get("g_idx")

    def stored(self, grid: Grid, shape: tuple[int, int], arrays: Arrays) -> Stored:
        zero_point = self._zero_points(grid, shape[0], arrays["qzeros"])
        return Stored(
            grid,
            shape[1],
            stream_of(arrays["qweight"].T),
            arrays["scales"].T,
            None if grid.symmetric else zero_point,
        )

    def _zero_points(self, grid: Grid, out: int, words: np.ndarray) -> np.ndarray:
        """Return them as [out, groups] uint8."""
        bits, top = grid.bits, (1 << grid.bits) - 1
        less = _OFFSETS[self.name]
        if less and bits in (2, 4, 8) and (self.tool or "").startswith("gptqmodel"):
            ones = np.uint32(sum(1 << at for at in range(0, 32, bits)))
            words, less = (words.view(np.uint32) + ones).view(np.int32), 0
        found = codes_of(stream_of(words), bits, out)
        if less and (found == top).any():
            raise IntegrityError(
                f"a zero point is stored as {top}, less one: some programs read it as {top + 1}, which {bits} bits "
                "do not hold, and others as 0",
                hint="Save the checkpoint again with zero points as they are (format='gptq_v2').",
            )
        found = found.T + np.uint8(less)
        if grid.symmetric and (found != 1 << (bits - 1)).any():
            middle, other = 1 << (bits - 1), int(found[found != 1 << (bits - 1)][0])
            # Read by the other format they are one less or one more.
            by_the_other = (found == middle + (1 if _OFFSETS[self.name] else -1)).all()
            named = next(form for form in _OFFSETS if form != self.name)
            raise IntegrityError(
                f"a zero point is {other}; the configuration says that the grid is symmetric, whose zero is {middle}",
                hint=f"These are zero points of {named!r}: set checkpoint_format to that."
                if by_the_other
                else "If the grid is not symmetric, set sym to false; else save it again in 'gptq_v2'.",
            )
        return found
