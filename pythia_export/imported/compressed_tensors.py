"""compressed-tensors' format, of llm-compressor: `pack-quantized` and the unpacked `int-quantized`, weights alone.

    weight_packed      int32 [out, in * bits / 32]       codes of a row, one after another; 1 to 8 bits without gaps
    weight_scale       float [out, groups]
    weight_zero_point  int32 [out * bits / 32, groups]   packed along `out`; of asymmetric grids alone
    weight_shape       int64 [2]
    weight             int8 [out, in]                    in place of the packed one, of int-quantized

Numbers are signed there; packed, each has half the range added, as everything here has.

https://github.com/vllm-project/compressed-tensors/tree/main/src/compressed_tensors/compressors/pack_quantized
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, JsonValue

from ..base.errors import IntegrityError, SourceError
from ..records.record import Record, checked
from .stored import FLOATS, MATCH, SAVE_AGAIN, Arrays, Grid, Part, Stored, codes_of, matches, stream_of

METHODS = ("compressed-tensors",)
_FORMS = ("pack-quantized", "int-quantized", "naive-quantized")
_STRATEGIES = ("group", "channel")
_PACK = "Quantise the weights alone, packed: llm-compressor's W4A16 or W8A16."
_HEADS = ("lm_head", "embed_out")  # one linear, by its names in memory and in files


class _Weights(Record):
    num_bits: Annotated[int, Field(ge=1, le=8)]
    type: str = "int"
    symmetric: bool = True
    strategy: str | None = None
    group_size: int | None = None


class _Group(Record):
    targets: list[str]
    weights: _Weights
    input_activations: JsonValue = None
    output_activations: JsonValue = None
    format: str | None = None


class Settings(Record):
    """What `quantization_config` says, as far as it is about what is stored."""

    config_groups: dict[str, _Group]
    ignore: list[str] = []
    format: str
    version: str | None = None
    kv_cache_scheme: JsonValue = None
    sparsity_config: JsonValue = None
    transform_config: JsonValue = None


_MORE = {
    "kv_cache_scheme": ("keys and values are rounded too", "Quantise it again without kv_cache_scheme."),
    "sparsity_config": ("weights are stored without their zeros", "Save it again without a sparse format."),
    "transform_config": ("activations are rotated while it runs", "Quantise it again without QuIP or SpinQuant."),
}  # each computes something that the codes do not say


def read(raw: dict[str, Any], where: str) -> CompressedTensors:
    """Read a configuration of this format.

    Raises:
        SourceError: weights in floats of fewer bits, activations that are rounded too, or more than weights say.
        IntegrityError: a setting that is missing or no such setting.
    """
    settings = checked(Settings, raw, where, SAVE_AGAIN)
    for name, group in settings.config_groups.items():
        form, of = group.format or settings.format, group.weights
        place = f"{where}: config_groups.{name}"
        if form not in _FORMS or of.type != "int":
            raise SourceError(
                f"{place}: weights of type {of.type!r}, {form!r}; integers were expected, {_FORMS[0]!r}", hint=_PACK
            )
        if group.input_activations is not None or group.output_activations is not None:
            raise SourceError(
                f"{place}: activations are rounded too; only weights are imported, and the artifact would be another "
                "model",
                hint=_PACK,
            )
        if form != _FORMS[0] and of.num_bits != 8:
            raise SourceError(
                f"{place}: {of.num_bits} bits that are not packed, {form!r}; {_FORMS[0]!r} was expected", hint=_PACK
            )
        if of.strategy not in (None, *_STRATEGIES):
            raise SourceError(
                f"{place}: the strategy {of.strategy!r}; {' or '.join(map(repr, _STRATEGIES))} was expected",
                hint=_PACK,
            )
    for key, (what, hint) in _MORE.items():
        found = getattr(settings, key)
        if found and not _changes_nothing(found):
            raise SourceError(f"{where}.{key}: {what}; only weights are imported", hint=hint)
    forms = {group.format or settings.format for group in settings.config_groups.values()}
    version = settings.version
    tool = None if version is None else f"compressed-tensors {version}"
    return CompressedTensors(", ".join(sorted(forms)), tool, settings, where)


def _changes_nothing(found: JsonValue) -> bool:
    """Say whether a setting is there and changes nothing: weights that are stored whole, an empty list of rotations."""
    return isinstance(found, dict) and (found.get("format") == "dense" or found.get("config_groups") == {})


@dataclass(frozen=True)
class CompressedTensors:
    """One checkpoint's settings. `name` and `tool` as in `Format`."""

    name: str
    tool: str | None
    settings: Settings
    where: str

    def grid(self, linear: str, there: Collection[str]) -> Grid | None:
        names = _HEADS if linear in _HEADS else (linear,)
        packed = "weight_scale" in there
        group = None if any(map(self._ignored, names)) else next(filter(None, map(self._group_of, names)), None)
        if packed != (group is not None):
            said = "leaves it in float" if packed else "quantises it"
            raise IntegrityError(
                f"{linear} is {'quantised' if packed else 'in float'}; {self.where} {said} (`targets`, `ignore`)",
                hint=MATCH,
            )
        if group is None:
            return None
        of = group.weights
        whole = of.strategy == "channel" or of.group_size is None
        return Grid.checked(of.num_bits, -1 if whole else of.group_size, of.symmetric, f"{self.where}: {linear}")

    def _ignored(self, name: str) -> bool:
        return any(self._matches(name, pattern) for pattern in self.settings.ignore)

    def _matches(self, name: str, pattern: str) -> bool:
        if pattern.startswith("re:"):
            return matches(pattern.removeprefix("re:"), name, self.where)
        return pattern == name

    def _group_of(self, name: str) -> _Group | None:
        """Return the group that a linear is of: by its name before patterns, by these before the class of all."""
        groups = self.settings.config_groups.values()
        named = (group for group in groups if name in group.targets)
        matched = (group for group in groups if any(self._matches(name, target) for target in group.targets))
        of_class = (group for group in groups if "Linear" in group.targets)
        return next(named, None) or next(matched, None) or next(of_class, None)

    def parts(self, grid: Grid, shape: tuple[int, int]) -> dict[str, Part]:
        out, fan_in = shape
        groups = grid.groups(fan_in)
        words = -(-out * grid.bits // 32)
        packed = "pack-quantized" in self.name
        own = {
            "weight_packed": Part(("I32",), (out, -(-fan_in * grid.bits // 32))),
            "weight_shape": Part(("I64",), (2,)),
        }
        zero = Part(("I32",), (words, groups)) if packed else Part(("I8",), (out, groups))
        return {
            **(own if packed else {"weight": Part(("I8",), shape)}),
            "weight_scale": Part(FLOATS, (out, groups)),
            **({} if grid.symmetric else {"weight_zero_point": zero}),
            "weight_g_idx": Part(("I32", "I64"), (fan_in,), needed=False),
        }

    def groups(self, arrays: Arrays) -> np.ndarray | None:
        return arrays.get("weight_g_idx")

    def stored(self, grid: Grid, shape: tuple[int, int], arrays: Arrays) -> Stored:
        told = arrays.get("weight_shape")
        if told is not None and told.tolist() != list(shape):
            raise IntegrityError(f"weight_shape is {told.tolist()}; config.json makes it {list(shape)}", hint=MATCH)
        half = np.uint8(1 << (grid.bits - 1))
        zero = arrays.get("weight_zero_point")
        if zero is not None:
            zero = (
                codes_of(stream_of(zero.T), grid.bits, shape[0]).T if told is not None else zero.view(np.uint8) + half
            )
        stream = stream_of(arrays["weight_packed"]) if told is not None else arrays["weight"].view(np.uint8) + half
        return Stored(grid, shape[1], stream, arrays["weight_scale"], zero)
