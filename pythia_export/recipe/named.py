"""What a word stands for where a recipe is expected: a file, a recipe of the package, a model, a folder."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from ..base.errors import RecipeError
from ..base.strict_json import shown
from ..model.suite import former_name, near, resolve, sizes
from ..model.suite import named as model_named
from .by_size import variants
from .changes import Raw
from .toml import read_toml

_OF_CHECKPOINTS = (".json", ".safetensors", ".bin", ".pt", ".gguf", ".onnx")  # a file of one is no recipe


@dataclass(frozen=True)
class Named:
    """Tables of a file, or a model alone with the `variant` that it is wanted in. Relative paths begin at `folder`."""

    raw: Raw
    where: str
    folder: Path
    variant: str | None = None


def recipe_called(name: str) -> Named:
    """Return what `name` stands for; the first of these that there is.

    1. `my.toml`, or any file: a recipe.
    2. `demo`, `demo-int8@step500`: a recipe that came with the package, and another revision of its model.
    3. `410m`, `pythia-410m-int8`, `160m-seed3-web@step512`: a model of the suite, in a variant.
    4. `./my-finetune`, or any folder: a local checkpoint.
    5. `someone/model@revision`: another model of the hub.

    Raises:
        RecipeError: none of them, with the nearest; an @ without a revision; a file that cannot be read, or is no TOML.
    """
    path = Path(name)
    if path.suffix == ".toml" or (path.suffix not in _OF_CHECKPOINTS and _is(path, "file")):
        raw = read_toml(path, "`pythia-export recipes` lists shipped ones.")
        return Named(raw, str(path), path.absolute().parent)
    stem, at, _ = name.partition("@")
    if stem in recipe_files():
        raw = read_toml(recipes_folder() / f"{stem}.toml", "")
        if at:
            raw["model"] |= _model(*resolve(raw["model"]["id"] + name.removeprefix(stem)))
        return Named(raw, name, recipes_folder())
    model, variant = split_variant(name)
    if model_named(model) is not None:
        model_id, revision = resolve(model)
        return Named({"model": _model(model_id, revision)}, name, Path.cwd(), variant)
    if name.startswith((".", "/", "~")) or _is(path, "folder") or _is(path, "file"):
        return Named({"model": {"path": name}}, name, Path.cwd(), "int4")
    if "/" in name or os.sep in name:
        return Named({"model": _model(*resolve(name))}, name, Path.cwd(), "int4")
    raise RecipeError(f"no recipe, model or folder called {shown(name)}", hint=suggestion(name))


def _model(model_id: str, revision: str | None) -> Raw:
    return {"id": model_id} | ({"revision": revision} if revision else {})


def split_variant(name: str) -> tuple[str, str]:
    """Return a model's name and the variant: `410m-int8@step1` is `410m@step1` as int8, and `410m` is int4."""
    asked, at, revision = name.partition("@")
    stem, _, variant = asked.rpartition("-")
    if stem and variant in variants():
        return f"{stem}{at}{revision}", variant
    return name, "int4"


def names_texts(name: str) -> bool:
    """Return whether a name is a recipe's, with texts, and not only a model's: `410m-int4`, not `410m`."""
    return recipe_called(name).variant is None or split_variant(name)[0] != name


def suggestion(name: str) -> str:
    """Return what may have been meant, the likeliest first."""
    model, variant = split_variant(name)
    asked, _, revision = model.partition("@")
    if old := former_name(asked):
        return f"{old}."
    guesses = [f"{found}-{variant}" for found in near(asked)]
    guesses += difflib.get_close_matches(name, recipe_files(), n=1, cutoff=0.6)
    if not guesses:
        return (
            "`pythia-export recipes` lists recipes, `pythia-export models` models. A folder is given with its path, "
            "./my-model; a model of another owner as owner/name."
        )
    return f"Did you mean {', '.join(guess + ('@' + revision if revision else '') for guess in guesses)}?"


def recipes_folder() -> Path:
    """Return where the recipe files are: inside the wheel, or at the top of a checkout."""
    package = Path(__file__).parent.parent
    packaged = package / "recipes"
    return packaged if packaged.is_dir() else package.parent / "recipes"


def recipe_files() -> list[str]:
    """Return the names of the recipes that came as files."""
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def recipe_names() -> list[str]:
    """Return the recipes to choose from: files, and each size of the suite in the variants that are listed for it."""
    listed = [f"pythia-{size}-{variant}" for size in sizes() for variant in variants(size)]
    return sorted([*recipe_files(), *listed])


def about(name: str) -> str:
    """Return when to choose a recipe of `recipe_names`."""
    if name not in recipe_files():
        return variants()[split_variant(name)[1]]
    lines = (recipes_folder() / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))


def _is(path: Path, kind: str) -> bool:
    try:
        return path.is_dir() if kind == "folder" else path.exists() and not path.is_dir()  # a shell's pipe is a file
    except (OSError, ValueError):  # a name that no file can have
        return False
