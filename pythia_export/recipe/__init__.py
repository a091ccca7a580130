"""The schema of a recipe: one TOML file, one artifact. Unknown keys are errors that name the nearest valid one.

[model]        what is exported        [export]   the graph's target
[calibration]  what GPTQ observes      [verify]   the held-out text and the gates
[quantize]     how weights are rounded
"""

from .by_size import variants
from .changes import Changes, changes_called
from .export import Export
from .imported import imported_keys, imported_recipe
from .load import load_recipe, parse_recipe, recipe_keys
from .model import Model
from .named import about, names_texts, recipe_files, recipe_names, recipes_folder, split_variant
from .quantize import Head, Method, Override, Quantize
from .schema import Recipe
from .scheme import Scheme
from .text import BATCH, Calibration, Text
from .toml import as_toml
from .verify import INSIDE, Gate, Gates, Verify

__all__ = [
    "BATCH", "INSIDE", "Calibration", "Changes", "Export", "Gate", "Gates", "Head", "Method", "Model", "Override",
    "Quantize", "Recipe", "Scheme", "Text", "Verify", "about", "as_toml", "changes_called", "imported_keys",
    "imported_recipe", "load_recipe", "names_texts", "parse_recipe", "recipe_files", "recipe_keys", "recipe_names",
    "recipes_folder", "split_variant", "variants",
]  # fmt: skip
