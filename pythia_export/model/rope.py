"""How a configuration scales rotary frequencies: in `rope_scaling` (transformers 4) or `rope_parameters` (5).

What each type computes is in rotary.py. longrope switches between two sets of frequencies at a length within the
context, so that what a cached key was turned by depends on the text's length at the time: it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..base.errors import SourceError
from ..base.strict_json import shown

RopeType = Literal["default", "linear", "dynamic", "yarn", "llama3"]
TYPES = get_args(RopeType)
# What each type reads besides its name: those that it must have, and those that have a default.
_NEEDED = {"linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",)} | {
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
}
_OPTIONAL = {
    "yarn": (
        "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "original_max_position_embeddings",
        "truncate",
    )
}  # fmt: skip
_MAY_BE_ZERO = ("mscale", "mscale_all_dim", "beta_fast", "beta_slow")  # zero is the default, as transformers reads them


@dataclass(frozen=True)
class Rope:
    """How rotary frequencies are scaled. `settings` are what the type reads, by transformers' names, in their order."""

    type: RopeType = "default"
    settings: tuple[tuple[str, float], ...] = ()

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str) -> Rope:
        """Read `rope_scaling` or `rope_parameters`; `where` names the place in errors. What a type ignores is dropped.

        Raises:
            SourceError: a type that is not supported, a setting that is missing or no number.
        """
        spelt = {name: raw[name] for name in ("rope_type", "type") if raw.get(name) is not None}
        if not spelt and set(raw) - {"rope_theta", "partial_rotary_factor"}:
            raise SourceError(f"{where} has no rope_type", hint=f"One of {', '.join(TYPES)} was expected.")
        kinds = list(spelt.values()) or ["default"]
        if kinds[0] != kinds[-1]:
            raise SourceError(
                f"{where}: rope_type is {shown(kinds[0])} and type is {shown(kinds[-1])}; one of them was expected"
            )
        if kinds[0] not in TYPES:
            raise SourceError(
                f"{where}: rotary embedding of type {shown(kinds[0])} is not supported; {', '.join(TYPES)} are"
                + (": two sets of frequencies, chosen by the length of the text" if kinds[0] == "longrope" else "")
            )
        kind: RopeType = kinds[0]
        settings = []
        for name in (*_NEEDED.get(kind, ()), *_OPTIONAL.get(kind, ())):
            value = raw.get(name)
            if value is None:
                if name in _NEEDED[kind]:
                    raise SourceError(f"{where}: rope_type {kind!r} needs `{name}`, which is not there")
                continue
            wanted = "true or false" if name == "truncate" else "a positive number, from 1e-6 to 1e9,"
            if name == "truncate":
                right = isinstance(value, bool)
            else:
                right = not isinstance(value, bool) and isinstance(value, int | float)
                right = right and (1e-6 <= value <= 1e9 or value == 0 and name in _MAY_BE_ZERO)
            if not right:
                raise SourceError(f"{where}: {name} is {shown(value)}; {wanted} was expected")
            settings.append((name, value))
        rope = cls(kind, tuple(settings))
        if kind == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
            raise SourceError(f"{where}: high_freq_factor must be more than low_freq_factor")
        return rope

    def __getitem__(self, name: str) -> float:
        return dict(self.settings)[name]

    def to_dict(self) -> dict[str, Any]:
        """In the spelling of transformers 4.43 and later."""
        return {"rope_type": self.type, **dict(self.settings)}


PLAIN = Rope()
