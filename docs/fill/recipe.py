"""Every key of a recipe, from the schema: sections, keys, values, defaults, descriptions."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic_core import PydanticUndefined

from .kinds import toml, words
from .markdown import code, table

BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


def all_sections() -> str:
    """Return each section of a recipe with its keys; those that [calibration] and [verify] share are listed once."""
    from pythia_export.recipe import Recipe
    from pythia_export.recipe.text import Text

    parts: list[str] = []
    for name, section in _sections(Recipe, ""):
        keys = set(section.model_fields)
        if issubclass(section, Text):
            if not any(part.startswith("## Text") for part in parts):
                parts += ["## Text: `[calibration]` and `[verify]`", "Both sections have these keys."]
                parts += [_keys(Text, set(Text.model_fields))]
            keys -= set(Text.model_fields)
        parts += [f"## {name}", *_doc(section), _keys(section, keys)]
    return "\n\n".join(parts)


def _sections(schema: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, field in schema.model_fields.items():
        inner = _section(field.annotation)
        if inner is None or _is_gate(inner):
            continue
        path = f"{prefix}{key}"
        yield f"`[[{path}]]`" if get_origin(field.annotation) is tuple else f"`[{path}]`", inner
        yield from _sections(inner, f"{path}.")


def _section(annotation: Any) -> Any:
    from pythia_export.recipe.section import Section

    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _is_gate(section: Any) -> bool:
    """A gate is written as one number, so it is a key."""
    return "limit" in section.model_fields


def _doc(section: Any) -> list[str]:
    written = vars(section).get("__doc__")
    return [inspect.cleandoc(written)] if written else []


def _keys(section: Any, names: set[str]) -> str:
    rows = []
    for key, field in section.model_fields.items():
        inner = _section(field.annotation)
        if key in names and (inner is None or _is_gate(inner)):
            rows.append([code(key), _values(field, inner) + _default(field), field.description or ""])
    return table(["key", "value", "what it says"], rows)


def _values(field: Any, gate: Any) -> str:
    if gate is not None:
        return "number, or `{ limit = ..., confidence = ... }`"
    rules = [rule for meta in field.metadata for rule in (meta, *getattr(meta, "metadata", ()))]
    found = [(said, getattr(rule, name, None)) for rule in rules for name, said in BOUNDS.items()]
    bounds = [said.format(limit) for said, limit in found if limit is not None]
    return ", ".join([words(field.annotation).removesuffix(" or null"), *bounds])


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "; required"
    return "" if field.default is None or field.default == () else f"; default {code(toml(field.default))}"


def by_size() -> str:
    """Return what a recipe gets by the model's size where it says nothing, from recipe/by_size.toml."""
    from pythia_export import recipe

    tables = tomllib.loads(Path(recipe.__file__).with_name("by_size.toml").read_text(encoding="utf-8"))
    rows = [
        [size, str(row["group_size"]), f"{row['tokens']:,}", f"{row['logits']:g}"]
        + [f"{row['ppl_ratio'][bits]:g}" for bits in ("8", "4", "3")]
        for size, row in tables["size"].items()
    ]
    gates = [f"`ppl_ratio`, {bits} bits" for bits in (8, 4, 3)]
    return table(["model", "`group_size`", "`verify.tokens`", "`export_max_abs`, `decode_max_abs`", *gates], rows)


def variants() -> str:
    """Return the last words that a model's name may have."""
    from pythia_export.recipe.by_size import variants

    return table(["name", "what it stands for"], [[code(f"MODEL-{name}"), about] for name, about in variants().items()])
