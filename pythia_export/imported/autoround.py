"""AutoRound's own format: GPTQ's or AWQ's tensors, as `packing_format` says, and settings of single linears beside.

`auto_round:auto_gptq` is GPTQ's with zero points less one and no g_idx; of asymmetric grids of 4 bits AutoRound writes
`auto_round:auto_awq`, which is AWQ's.

https://github.com/intel/auto-round/blob/main/auto_round/export/export_to_autoround/export.py
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import JsonValue

from ..base.errors import SourceError
from ..base.strict_json import shown
from ..records.record import Json, Record, checked
from . import awq, gptq
from .stored import SAVE_AGAIN, Arrays, Format, Grid, Part, Stored, matches

METHODS = ("auto-round", "intel/auto-round")
_INNER: dict[str, Callable[[dict[str, Any], str], Format]] = {
    "auto_round:auto_gptq": gptq.read,
    "auto_round:auto_awq": awq.read,
}


class Settings(Record):
    """What `quantization_config` says beside the settings of GPTQ or AWQ."""

    packing_format: str | None = None
    data_type: str = "int"
    act_bits: int | None = 16
    sym: bool = True
    extra_config: Json | None = None
    """Settings of single linears, by their names or patterns of them."""
    rotation_config: JsonValue = None
    spinquant_config: JsonValue = None


def read(raw: dict[str, Any], where: str) -> AutoRound:
    """Read a configuration of this format.

    Raises:
        SourceError: a variant of it that stores something else.
        IntegrityError: a setting that is missing or no such setting.
    """
    settings = checked(Settings, raw, where, SAVE_AGAIN)
    if settings.data_type != "int" or settings.packing_format not in _INNER:
        raise SourceError(
            f"{where}: AutoRound's packing_format is {shown(settings.packing_format)}, its data_type "
            f"{shown(settings.data_type)}; {' or '.join(map(repr, _INNER))} of 'int' was expected",
            hint="AutoRound saves integer weights so with format='auto_round'; its oldest versions name no packing.",
        )
    if settings.act_bits not in (None, 16):
        raise SourceError(
            f"{where}: activations of {settings.act_bits} bits; only weights are imported",
            hint="Quantise the weights alone: W4A16.",
        )
    rotated = next((key for key in ("rotation_config", "spinquant_config") if getattr(settings, key)), None)
    if rotated is not None:
        raise SourceError(
            f"{where}.{rotated}: activations are rotated while it runs; only weights are imported",
            hint="Quantise it again without a rotation.",
        )
    inner: Format = _INNER[settings.packing_format](raw, where)
    return AutoRound(settings.packing_format, inner.tool, inner, settings, where)


@dataclass(frozen=True)
class AutoRound:
    """One checkpoint's settings. `name` and `tool` as in `Format`; `inner` has the tensors."""

    name: str
    tool: str | None
    inner: Format
    settings: Settings
    where: str

    def grid(self, linear: str, there: Collection[str]) -> Grid | None:
        found = self.inner.grid(linear, there)
        if found is None:
            return None
        own, where = self._own(linear), f"{self.where}: {linear}"
        bits, group_size = own.get("bits", found.bits), own.get("group_size", found.group_size)
        return Grid.checked(bits, group_size, own.get("sym", self.settings.sym), where)

    def _own(self, linear: str) -> Json:
        """Return the settings of one linear: by its name, or by a pattern that matches it."""
        extra, where = self.settings.extra_config or {}, f"{self.where}: extra_config"
        keys = [linear] if linear in extra else [key for key in extra if matches(key, linear, where)]
        found = extra[keys[0]] if keys else {}
        return found if isinstance(found, dict) else {}

    def parts(self, grid: Grid, shape: tuple[int, int]) -> dict[str, Part]:
        return self.inner.parts(grid, shape)

    def groups(self, arrays: Arrays) -> np.ndarray | None:
        return self.inner.groups(arrays)

    def stored(self, grid: Grid, shape: tuple[int, int], arrays: Arrays) -> Stored:
        return self.inner.stored(grid, shape, arrays)
