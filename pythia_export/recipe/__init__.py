"""The schema of a recipe: one TOML file, one artifact. Unknown keys are errors that name the nearest valid one.

[model]        what is exported        [export]   the graph's target
[calibration]  what GPTQ observes      [verify]   the held-out text and the gates
[quantize]     how weights are rounded
"""

from .export import Export
from .load import load_recipe, parse_recipe, recipe_names, recipes_folder
from .model import Model
from .quantize import Head, Method, Override, Quantize, Scheme
from .schema import Recipe
from .text import BATCH, Calibration, Text
from .verify import Gate, Gates, Verify

__all__ = [
    "BATCH", "Calibration", "Export", "Gate", "Gates", "Head", "Method", "Model", "Override", "Quantize", "Recipe",
    "Scheme", "Text", "Verify", "load_recipe", "parse_recipe", "recipe_names", "recipes_folder",
]  # fmt: skip
