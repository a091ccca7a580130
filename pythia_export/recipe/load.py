"""Recipes out of TOML, by path or by name; what is wrong with one is told with its place."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..base.errors import RecipeError
from ..base.strict_json import shown
from .schema import Recipe
from .section import Section
from .toml import read_toml


def load_recipe(name: str) -> Recipe:
    """Read a recipe by path, or by the name of one that came with the package (`demo`).

    Relative paths inside it are taken from the file's own folder.

    Raises:
        RecipeError: no such recipe, not TOML, an unknown key, a value out of range.
    """
    path = Path(name)
    if path.name == name and path.suffix != ".toml" and not _is_file(path):
        shipped = recipe_names()
        if name not in shipped:
            near = difflib.get_close_matches(name, shipped, n=3, cutoff=0.4)
            raise RecipeError(
                f"no recipe called {shown(name)}",
                hint=f"Did you mean {', '.join(near)}?" if near else "`pythia-export recipes` lists them.",
            )
        path = recipes_folder() / f"{name}.toml"
    raw = read_toml(path, "`pythia-export recipes` lists shipped ones.")
    return _anchor(parse_recipe(raw, str(path)), path.absolute().parent)  # artifacts are proved from anywhere


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def parse_recipe(raw: dict[str, Any], where: str = "recipe") -> Recipe:
    try:
        return Recipe.model_validate(raw)
    except ValidationError as e:
        raise RecipeError("\n".join(explain(where, error, Recipe) for error in e.errors())) from None


def recipes_folder() -> Path:
    """Inside the wheel, or at the top of a checkout."""
    package = Path(__file__).parent.parent
    packaged = package / "recipes"
    return packaged if packaged.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    return sorted(p.stem for p in recipes_folder().glob("*.toml"))


def _anchor(recipe: Recipe, folder: Path) -> Recipe:
    def anchored(section: Any) -> Any:
        given = {key: getattr(section, key, None) for key in ("path", "adapter")}
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
