"""Where the local files of an artifact lie on this machine: known here alone, and never published.

An artifact may go to the hub, so its records name a local checkpoint, adapter or text by the last part of its path: the
rest names people and machines. `verify` wants the whole path again. It is kept beside the hub's cache (hub/kept.py),
under a hash of what the artifact was made from, and is looked for beside the artifact after that. What is found is
accepted by its hashes, wherever it lies.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from .. import hub
from ..base.errors import IntegrityError, RecipeError, SourceError
from ..base.strict_json import read_object
from ..recipe import Recipe
from ..recipe.model import PLACE

# Key of the recipe -> what lies there, and how to say where.
_LOCAL = {
    "model.path": ("checkpoint", "--checkpoint DIR says where it lies; it is accepted by its hashes."),
    "model.adapter": ("adapter", "--adapter DIR says where it lies; it is accepted by its hashes."),
    "verify.path": ("text", "--text PATH says where it lies."),
    "verify.sae": ("autoencoders", "--sae DIR says where they lie."),
    "calibration.path": ("text", ""),
}
_NEEDED = ("model.path", "model.adapter", "verify.path", "verify.sae")


@dataclass(frozen=True)
class Elsewhere:
    """Where somebody says that the local sources of an artifact lie now."""

    checkpoint: Path | None = None
    adapter: Path | None = None
    text: Path | None = None
    sae: Path | None = None

    def given(self, recipe: Recipe) -> dict[str, Path]:
        """By key of the recipe. A checkpoint of the hub may lie in a folder too, and any model has a use for
        autoencoders.

        Raises:
            RecipeError: the recipe has no use for one.
        """
        if self.adapter is not None and recipe.model.adapter is None:
            raise RecipeError("--adapter is for an artifact of a checkpoint with an adapter; this one has none")
        if self.text is not None and recipe.verify.path is None:
            raise RecipeError(f"--text is for a local held-out text; this artifact's is {recipe.verify.described}")
        places = {
            "model.path": self.checkpoint, "model.adapter": self.adapter, "verify.path": self.text,
            "verify.sae": self.sae,
        }  # fmt: skip
        return {key: path.absolute() for key, path in places.items() if path is not None}


def without_paths(recipe: Recipe) -> Recipe:
    """The recipe with the last part alone of every path."""
    return _with(recipe, {key: Path(last_part(str(path))) for key, path in _paths(recipe)})


def last_part(path: str) -> str:
    """Return the last part of a path of any system; a name is its own last part."""
    return PureWindowsPath(path).name or path


def is_path(text: str) -> bool:
    """Whether a text is a whole path on some system."""
    return text.startswith(("/", "~", "file:")) or PureWindowsPath(text).is_absolute()


def remember(recipe: Recipe, commit: str) -> None:
    """Keep the paths of a recipe on this machine, as far as they lead somewhere; `commit` is the checkpoint's. Where
    nothing can be kept, they are asked for when they are needed."""
    paths = {key: os.path.abspath(path) for key, path in _paths(recipe) if _there(path)}
    if paths:
        try:
            hub.write_kept(_kept(recipe, commit), json.dumps(paths).encode())
        except OSError:
            return


def located(
    recipe: Recipe,
    commit: str,
    beside: Path,
    elsewhere: Elsewhere | None = None,
    needed: Collection[str] = _NEEDED,
) -> Recipe:
    """The published recipe of an artifact with whole paths again; `beside` is the artifact's folder.

    Raises:
        RecipeError: `elsewhere` has a place for what the artifact was not made with.
        SourceError: where one that is `needed` lies is not known.
    """
    given = {} if elsewhere is None else elsewhere.given(recipe)
    try:
        known = read_object(_kept(recipe, commit))
    except (OSError, IntegrityError):
        known = {}
    found: dict[str, Path] = {}
    for key, path in _paths(recipe):
        if key in given:
            continue
        candidates = [path] if path.is_absolute() else []
        candidates += [Path(known[key])] if isinstance(known.get(key), str) else []
        candidates.append(beside.absolute().parent / last_part(str(path)))
        there = next((p for p in candidates if _there(p)), None)
        if there is None and key in needed:
            noun, hint = _LOCAL[key]
            raise SourceError(
                f"{beside}: made with the local {noun} `{last_part(str(path))}`; where that lies is not known here",
                hint=hint,
            )
        found[key] = there or path
    if "model.path" in given:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"id": None})})
    return _with(recipe, found | given)


def _there(path: Path) -> bool:
    """Whether something lies at a path, at a pattern of paths, or at what the names of a memory map begin with."""
    path = Path(str(path).replace(PLACE, "*"))
    if path.exists() or path.with_name(f"{path.name}.idx").exists():
        return True
    return next(glob.iglob(str(path), recursive=True), None) is not None


def _paths(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    for key in _LOCAL:
        section, _, field = key.partition(".")
        path = getattr(getattr(recipe, section), field, None)
        if path is not None:
            yield key, path


def _with(recipe: Recipe, paths: dict[str, Path]) -> Recipe:
    sections = {}
    for name in {key.partition(".")[0] for key in paths}:
        own = {key.partition(".")[2]: path for key, path in paths.items() if key.startswith(f"{name}.")}
        sections[name] = getattr(recipe, name).model_copy(update=own)
    return recipe.model_copy(update=sections)


def _kept(recipe: Recipe, commit: str) -> Path:
    """One file for all artifacts of the same checkpoint and texts, as far as names and hashes tell."""
    public = without_paths(recipe).model_dump(
        mode="json", include={"model", "calibration", "verify"}, exclude_none=True
    )
    public["verify"].pop("gates", None)
    made_from = json.dumps({"commit": commit, **public}, sort_keys=True)
    return hub.kept("places") / f"{hashlib.sha256(made_from.encode()).hexdigest()}.json"
