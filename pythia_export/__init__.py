"""Pythia checkpoints in, proved ONNX artifacts out. Importing the package costs nothing; its modules do the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .kernels import kernels_path

if TYPE_CHECKING:
    from .api import Artifact

__all__ = ["Artifact", "kernels_path"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """ONNX Runtime is imported when an artifact is first asked for."""
    if name == "Artifact":
        from .api import Artifact

        return Artifact
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
