"""Which of its two speeds a graph runs at here: our native kernels, or the functions that it carries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..base.native_library import instruction_set, kernels_path
from .onnxruntime import Provider

if TYPE_CHECKING:
    from ..artifact import Artifact

MODEL = "model.onnx"
Speed = Literal["native", "function", "stock"]
# A node of our operators' domain in a graph's bytes: NodeProto's field 7, six characters. Reading it takes no onnx.
_OURS = b"\x3a\x06pythia"


def speed_here(artifact: Artifact) -> tuple[Speed, str]:
    """`speed` and `why` of a session that opened the artifact here and now; nothing is loaded."""
    speed, why, _ = speed_of(artifact.file(MODEL).read_bytes(), provider_of(artifact), True)
    return speed, why


def provider_of(artifact: Artifact) -> Provider:
    return "cuda" if artifact.recipe.export.target == "cuda" else "cpu"


def speed_of(graph: bytes, provider: Provider, native: bool) -> tuple[Speed, str, Path | None]:
    """How fast a graph will run, why, and the library to register.

    A registered library takes over the operator's schema for every provider, so a session gets the one that has kernels
    for all that it computes with.
    """
    if _OURS not in graph:
        return "stock", "the graph holds ONNX Runtime's operators alone", None
    if not native:
        return "function", "native kernels were not wanted", None
    library = kernels_path(provider)
    if library is None:
        what, how = ("native kernels are", "kernels") if provider == "cpu" else ("native kernels for a GPU are", "cuda")
        return "function", f"the {what} not built (`make {how}` in a checkout)", None
    version = instruction_set(library) if provider == "cpu" else None
    return "native", library.name if version is None else f"{library.name}, {version}", library
