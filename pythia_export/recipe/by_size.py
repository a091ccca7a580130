"""Defaults by size: the sections of a recipe that was not written, and [calibration] and [verify] where one leaves them
out. The figures are in by_size.toml."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..base.errors import PythiaExportError
from ..base.strict_json import read_object
from ..model.neox import NeoXConfig
from ..model.suite import geometry, resolve
from .changes import Raw, merged

_OF_COST = ("ppl_ratio", "delta_nll", "kld_mean", "same_top")  # gates whose limits belong to bits


@dataclass(frozen=True)
class Size:
    """One row of the table. `ppl_ratio` is by bits, and empty for a model that is none of the suite's."""

    group_size: int
    tokens: int
    logits: float
    ppl_ratio: dict[str, float]
    context: int


@cache
def _tables() -> Any:
    return tomllib.loads(Path(__file__).with_name("by_size.toml").read_text(encoding="utf-8"))


def variants(size: str | None = None) -> dict[str, str]:
    """Return the last words that a name may have, each with when to choose it; of a `size`, those that are listed."""
    found = _tables()["variant"].items()
    return {name: v["about"] for name, v in found if size is None or size in v.get("listed", [size])}


def whole(model: Raw, variant: str, changes: Raw, folder: Path) -> Raw:
    """Return the recipe of a model that was named and nothing else: of a variant, as far as `changes` leave it."""
    tables, size = _tables(), size_of(merged({"model": model}, changes)["model"], folder)
    differs = {name: tables["variant"][variant].get(name, {}) for name in ("quantize", "export")}
    target = _inner(changes, "export").get("target")  # --target web stands for the variant web
    if target is not None and target != _inner(differs, "export").get("target", "cpu"):
        of_target = tables["variant"].get(target, {})
        kept = {"quantize": {"bits": differs["quantize"]["bits"]}} if "bits" in differs["quantize"] else {}
        differs = merged(kept, {name: of_target.get(name, {}) for name in ("quantize", "export")})
    raw = merged({name: tables["base"][name] for name in ("quantize", "export")}, differs)
    raw["quantize"]["group_size"] = size.group_size
    raw = {"model": model, **raw}
    bits = _inner(merged(raw, changes), "quantize").get("bits")
    return merged(raw, tables["bits"].get(str(bits), {}))


def completed(raw: Raw, changes: Raw, folder: Path) -> Raw:
    """Return `raw` with [calibration] and [verify] where it has none and needs them.

    `changes` are still to be made: they decide what is needed. `folder` is where relative paths begin.
    """
    after = merged(raw, changes)
    size = size_of(_inner(after, "model"), folder)
    left_out: Raw = {}
    if "calibration" not in raw and _calibrates(after):
        left_out["calibration"] = _fitted(_tables()["base"]["calibration"], size)
    if "verify" not in raw:
        tokens = _inner(after, "verify").get("tokens", size.tokens)
        verify = _fitted(_tables()["base"]["verify"], size) | {"tokens": size.tokens}
        left_out["verify"] = verify | {"gates": _gates(size, after, tokens)}
    return raw | left_out


def gated_by_bits(raw: Raw, changes: Raw, folder: Path) -> tuple[Raw, str]:
    """Return `raw` with the gates on quantisation's cost that belong to the bits of `changes`, and what to say of it.

    Where the bits stay, or there are no such gates, that is `raw` and nothing to say.
    """
    after, verify = merged(raw, changes), _inner(raw, "verify")
    before, now = (_bits(_inner(tables, "quantize")) for tables in (raw, after))
    given = _inner(verify, "gates")
    dropped = [name for name in given if name in _OF_COST]
    if before == now or not dropped:
        return raw, ""
    tokens = _inner(after, "verify").get("tokens")
    own = {name: limit for name, limit in _gates(size_of(_inner(after, "model"), folder), after, tokens).items()
           if name in _OF_COST}  # fmt: skip
    kept = {name: limit for name, limit in given.items() if name not in _OF_COST}
    instead = ", ".join(f"{name} {limit}" for name, limit in own.items()) or "none; set some by --set verify.gates"
    said = f"The gates {', '.join(dropped)} are of {before} bits and do not count at {now} bits. In their place: "
    said += f"{instead}."
    return raw | {"verify": verify | {"gates": kept | own}}, said


def size_of(model: Raw, folder: Path) -> Size:
    """Return the row of a model; of one whose size cannot be known before it is pulled, the last."""
    config = _config(model, folder)
    rows = {name: geometry(f"EleutherAI/pythia-{name}") for name in _tables()["size"]}
    for name, known in rows.items():
        if known is not None and config is not None and _shape(known) == _shape(config):
            return Size(**_tables()["size"][name], context=config.max_positions)
    parameters = math.inf if config is None else config.parameters
    name = next((name for name, known in rows.items() if known and known.parameters >= parameters), [*rows][-1])
    context = known.max_positions if (known := config or rows[name]) else 2048
    return Size(**_tables()["size"][name] | {"ppl_ratio": {}}, context=context)


def _config(model: Raw, folder: Path) -> NeoXConfig | None:
    """Return the configuration, from the catalogue or the folder; None where it is not to be had.

    What is wrong with a name or a folder is for those to say who open it.
    """
    try:
        if isinstance(model.get("id"), str):
            return geometry(resolve(model["id"])[0])
        if isinstance(model.get("path"), str | Path):
            path = folder / Path(model["path"]).expanduser() / "config.json"
            return NeoXConfig.from_dict(read_object(path), str(path))
    except (PythiaExportError, OSError, ValueError, RuntimeError):
        return None
    return None


def _shape(config: NeoXConfig) -> tuple[int, ...]:
    """What a fine-tune has of its model; a vocabulary may have grown."""
    return config.hidden_size, config.num_layers, config.num_heads, config.intermediate_size


def _gates(size: Size, recipe: Raw, tokens: Any) -> Raw:
    quantize, export = _inner(recipe, "quantize"), _inner(recipe, "export")
    gates: Raw = {}
    if export.get("dtype") != "float16" and export.get("kv_cache", "float32") == "float32":  # else rounding moves them
        gates = {"export_max_abs": size.logits, "decode_max_abs": size.logits}
    limit = size.ppl_ratio.get(str(_bits(quantize)))
    if limit is not None:
        gates |= {"ppl_ratio": limit, "kld_mean": round(math.log(limit), 3)}
    least: int = _tables()["base"]["verify"]["gates"]["min_tokens"]
    return gates | {"min_tokens": min(least, tokens) if isinstance(tokens, int) else least}


def _bits(quantize: Raw) -> Any:
    return 8 if quantize.get("method") == "none" else quantize.get("bits", 4)


def _fitted(section: Raw, size: Size) -> Raw:
    return section | {"sequence_length": min(section["sequence_length"], size.context)}


def _calibrates(recipe: Raw) -> bool:
    """Return what `Recipe.calibrates` will say."""
    quantize, export = _inner(recipe, "quantize"), _inner(recipe, "export")
    if (export.get("rotary"), export.get("kv_cache")) == ("gqa", "int8"):
        return True
    rules = quantize.get("override")
    methods = [rule.get("method") for rule in rules if isinstance(rule, dict)] if isinstance(rules, list) else []
    return "gptq" in (quantize.get("method", "gptq"), *methods)


def _inner(raw: Raw, name: str) -> Raw:
    """Return a section; what is no table is for the schema to refuse."""
    found = raw.get(name)
    return found if isinstance(found, dict) else {}
