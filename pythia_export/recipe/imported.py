"""The recipe of an artifact that `import` makes: what was imported, and how it is proved."""

from __future__ import annotations

from pathlib import Path

from ..base.errors import RecipeError
from .by_size import completed
from .changes import Changes, merged, nested
from .load import parse_recipe, recipe_keys
from .model import Model
from .quantize import Quantize
from .schema import Recipe

_SECTIONS = ("verify", "export", "calibration")  # the last for the scales of an int8 cache
_OF_COST = ("ppl_ratio", "kld_mean")  # by_size has them for GPTQ of this project: here they are measured, not judged


def imported_keys() -> tuple[str, ...]:
    """Return the keys that an import may set, for guesses."""
    return tuple(key for key in recipe_keys() if key.partition(".")[0] in _SECTIONS)


def imported_recipe(model: Model, quantize: Quantize, changes: Changes) -> Recipe:
    """Return the recipe of weights that are quantised as `quantize` says. [verify] is by the model's size, without
    limits on the cost; `changes` may set any key of [verify], [export] and [calibration].

    Raises:
        RecipeError: another key, or a value out of range.
    """
    other = next((key for key in changes if key.partition(".")[0] not in _SECTIONS), None)
    if other is not None:
        raise RecipeError(
            f"--set {other}: `import` takes keys of [verify], [export] and [calibration] alone; weights stay as they "
            "are"
        )
    tables, here = nested(changes), Path.cwd()
    raw = {"model": model.model_dump(mode="json", exclude_none=True), "quantize": quantize.model_dump(mode="json")}
    raw = completed(raw, tables, here)
    for name in _OF_COST:
        raw["verify"]["gates"].pop(name, None)
    recipe = parse_recipe(merged(raw, tables), "import", {key: f"--set {key}" for key in changes})
    if recipe.export.dtype != "float32":
        raise RecipeError(
            "--set export.dtype: imported scales are kept exactly in float32", hint="Leave export.dtype out."
        )
    return recipe
