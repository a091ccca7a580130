"""Recipes by path, name, model or folder, with changes; what is wrong with one is reported with its place."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from ..base.errors import RecipeError
from ..base.strict_json import shown
from .by_size import completed, gated_by_bits, whole
from .changes import Changes, Raw, merged, nested
from .named import recipe_called
from .schema import Recipe
from .section import Section

_NONE: Mapping[str, Any] = MappingProxyType({})


def _unheard(message: str) -> None:
    pass


def load_recipe(
    name: str | os.PathLike[str],
    changes: Changes = _NONE,
    *,
    said: Callable[[str], str] = str,
    note: Callable[[str], None] = _unheard,
) -> Recipe:
    """Read a recipe by path or name, or make one for a model or a checkpoint folder; named.py has what `name` may be.

    `changes` are made before anything is checked: ``{"quantize.bits": 8}``. Where [calibration] or [verify] is left
    out, it is filled in by the model's size. A file's gates on what quantisation costs are those of its bits: other
    bits get the gates of the model's size, and `note` is told. Relative paths in a file begin at its folder. `said`
    names a changed key in messages.

    Raises:
        RecipeError: nothing of that name, not TOML, an unknown key, a value out of range.
    """
    found, tables = recipe_called(os.fspath(name)), nested(changes)
    raw = found.raw if found.variant is None else whole(found.raw["model"], found.variant, tables, found.folder)
    raw, gates = gated_by_bits(raw, tables, found.folder)
    if gates:
        note(gates)
    raw = merged(completed(raw, tables, found.folder), tables)
    recipe = parse_recipe(raw, found.where, {key: said(key) for key in changes})
    return _anchor(recipe, found.folder)  # artifacts are proved from anywhere


def parse_recipe(raw: Raw, where: str = "recipe", changed: Mapping[str, str] = _NONE) -> Recipe:
    """Check the tables of a recipe. `changed` says what to call keys that are not of `where`.

    Raises:
        RecipeError: an unknown key, a value out of range, a section that is missing.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as e:
        lines = [explain(_place(error["loc"], where, changed), error, Recipe) for error in e.errors()]
        raise RecipeError("\n".join(lines)) from None


def recipe_keys() -> list[str]:
    """Return every key of a recipe with its section, `quantize.head.bits`."""
    return list(_dotted(Recipe, ""))


def _dotted(schema: type[Section], prefix: str) -> Iterator[str]:
    for key, field in schema.model_fields.items():
        of_many = get_origin(field.annotation) is tuple  # an array of tables is one value
        inner = [c for c in (field.annotation, *get_args(field.annotation)) if isinstance(c, type) and not of_many]
        sections = [c for c in inner if issubclass(c, Section) and "limit" not in c.model_fields]
        yield from _dotted(sections[0], f"{prefix}{key}.") if sections else [f"{prefix}{key}"]


def _place(loc: tuple[int | str, ...], where: str, changed: Mapping[str, str]) -> str:
    dotted = ".".join(map(str, loc))
    said = [name for key, name in changed.items() if f"{dotted}.".startswith(f"{key}.") or key.startswith(f"{dotted}.")]
    return said[0] if said else where


def _anchor(recipe: Recipe, folder: Path) -> Recipe:
    def anchored(section: Any) -> Any:
        given = {key: getattr(section, key, None) for key in ("path", "adapter", "sae")}
        changes = {key: folder / path for key, path in given.items() if path is not None}  # an absolute one stays
        return section.model_copy(update=changes) if changes else section

    return recipe.model_copy(
        update={name: anchored(getattr(recipe, name)) for name in ("model", "calibration", "verify")}
    )


def explain(where: str, error: Any, schema: type[Section]) -> str:
    """One error of pydantic's about a file of `schema`, in words, with its place and the nearest known key."""
    place = [str(p) for p in error["loc"]]
    dotted = ".".join(place)
    if error["type"] == "extra_forbidden":
        valid = _keys_at(place[:-1], schema)
        near = difflib.get_close_matches(place[-1], valid, n=1, cutoff=0.5)
        meant = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(valid)}"
        return f"{where}: unknown key `{dotted}`; {meant}"
    if error["type"] == "missing":
        return f"{where}: `{dotted}` is required and missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("tuple_type", "model_type"):  # of Python, and a file is TOML
        tables = place[-1:] == ["override"]
        kind = "an array of tables" if tables else "an array" if error["type"] == "tuple_type" else ""
        message = f"{kind or 'a table'} was expected"
    if error["type"] == "too_short":
        message = "an empty list; at least one was expected"
    given = error.get("input")
    found = f" (found {shown(given)})" if isinstance(given, str | int | float | bool) else ""
    return f"{where}: {f'`{dotted}`: ' if dotted else ''}{message}{found}"


def _keys_at(place: list[str], schema: type[Section]) -> list[str]:
    section: Any = schema
    for key in place:
        if key.isdigit():
            continue
        annotation = section.model_fields[key].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, Section))
    return sorted(section.model_fields)
