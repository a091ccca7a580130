"""Pythia checkpoints in, proved ONNX artifacts out. Importing the package imports nothing; its modules do the work.

Nothing at all: before `python -m pythia_export` gets to leave the current folder (interpreter.py), this file is read.
"""

from __future__ import annotations

from .base.version import __version__

TYPE_CHECKING = False  # of `typing`, which would be imported
if TYPE_CHECKING:
    from typing import Any

    from .api import Artifact
    from .base.native_library import kernels_path

__all__ = ["Artifact", "__version__", "kernels_path"]


def __getattr__(name: str) -> Any:
    """ONNX Runtime is imported when an artifact is first asked for."""
    if name == "Artifact":
        from .api import Artifact

        return Artifact
    if name == "kernels_path":
        from .base.native_library import kernels_path

        return kernels_path
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
