"""Which of its two speeds a graph runs at here: our native kernels, or the functions that it carries."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..base.native_library import instruction_set, kernels_path, library_fault, unknown_to
from .onnxruntime import Provider

if TYPE_CHECKING:
    from ..artifact import Artifact

MODEL = "model.onnx"
Speed = Literal["native", "function", "stock"]
# A node of our operators' domain in a graph's bytes: NodeProto's field 7, six characters. Reading it takes no onnx.
_OURS = b"\x3a\x06pythia"
# Operators that libraries had not from the first, and which ONNX Runtime would leave to the graph's function unsaid.
# Without RotaryAttention nothing opens (onnxruntime.py).
_LATER = ("LinearNBits", "DecoderLayers", "DecoderMask", "Linear3Bits", "Decoder")


def speed_here(artifact: Artifact) -> tuple[Speed, str]:
    """Return `speed` and `why` of a session that opened the artifact here and now; nothing is loaded.

    Of a library that no session would open, `why` says what is wrong with it.
    """
    speed, why, library = speed_of(artifact.file(MODEL).read_bytes(), provider_of(artifact), True)
    fault = None if library is None else library_fault(library)
    if fault is not None:
        return speed, f"{why}, which cannot be loaded: it {fault}"
    chosen = os.environ.get("PYTHIA_KERNELS_ISA")
    if chosen and speed == "native" and library is not None and instruction_set(library) is None:
        return (
            speed,
            f"{why}, which will not run: PYTHIA_KERNELS_ISA is {chosen!r}, a version that is not to be had here",
        )
    return speed, why


def provider_of(artifact: Artifact) -> Provider:
    return "cuda" if artifact.recipe.export.target == "cuda" else "cpu"


def speed_of(graph: bytes, provider: Provider, native: bool) -> tuple[Speed, str, Path | None]:
    """How fast a graph will run, why, and the library to register.

    A registered library takes over the operator's schema for every provider, so a session gets the one that has kernels
    for all that it computes with. One that lacks an operator of the graph is not registered: what would be called
    native would in part be the function.
    """
    if _OURS not in graph:
        return "stock", "the graph holds ONNX Runtime's operators alone", None
    if not native:
        return "function", "native kernels were not wanted", None
    library = kernels_path(provider)
    if library is None:
        what, how = ("native kernels are", "kernels") if provider == "cpu" else ("native kernels for a GPU are", "cuda")
        return "function", f"the {what} not built (`make {how}` in a checkout)", None
    if provider == "cuda":  # where these operators are always their functions, which call ONNX Runtime's own kernels
        return "native", library.name, library
    if library_fault(library) is None and (lacking := unknown_to(library, _called(graph, _LATER))):
        lacks = f"it lacks {' and '.join(lacking)}"
        return "function", f"{library.name} is older than the artifact: {lacks}. {_NEWER}", None
    version = instruction_set(library)
    return "native", library.name if version is None else f"{library.name}, {version}", library


_NEWER = (
    "It was not used. In a clone `make kernels` builds a new one; elsewhere `pip install --force-reinstall --no-deps "
    "pythia-export` brings it"
)


def _called(graph: bytes, operators: tuple[str, ...]) -> list[str]:
    """Return the operators that nodes in a graph's bytes have: NodeProto's field 4."""
    return [name for name in operators if b"\x22" + bytes([len(name)]) + name.encode() in graph]
