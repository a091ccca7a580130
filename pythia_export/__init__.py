"""Pythia checkpoints in, proved ONNX artifacts out. Importing the package imports nothing; its modules do the work.

Nothing at all: before `python -m pythia_export` gets to leave the current folder (interpreter.py), this file is read.
"""

from __future__ import annotations

from .base.version import __version__

TYPE_CHECKING = False  # of `typing`, which would be imported
if TYPE_CHECKING:
    from typing import Any

    from .api import Artifact
    from .base.errors import (
        EnvironmentProblem,
        IntegrityError,
        Interrupted,
        NumericsError,
        OutputError,
        PythiaExportError,
        RecipeError,
        ResourceError,
        SourceError,
    )
    from .base.native_library import kernels_path
    from .job import quantize
    from .recipe import Recipe

__all__ = [
    "Artifact", "EnvironmentProblem", "IntegrityError", "Interrupted", "NumericsError", "OutputError",
    "PythiaExportError", "Recipe", "RecipeError", "ResourceError", "SourceError", "__version__", "kernels_path",
    "quantize",
]  # fmt: skip

# Where each public name is; what is in no other module is an error of base/errors.py. No room is called like one.
_PLACES = {"Artifact": "api", "Recipe": "recipe", "kernels_path": "base.native_library", "quantize": "job"}


def __getattr__(name: str) -> Any:
    """Import what a name needs when it is first asked for: ONNX Runtime for Artifact, torch for quantize."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES.get(name, 'base.errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
