"""Where the native operators are: a library for ONNX Runtime, built from `kernels/`."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Literal

_FORM = {"darwin": "lib{}.dylib", "win32": "{}.dll"}.get(sys.platform, "lib{}.so")
# By what computes: the library's name, and the folder under build/ of a checkout.
_BUILT = {"cpu": ("pythia_kernels", "kernels"), "cuda": ("pythia_cuda", "kernels-cuda")}


def kernels_path(provider: Literal["cpu", "cuda"] = "cpu") -> Path | None:
    """The library to register with ONNX Runtime (`register_custom_ops_library`); None where it was not built.

    It lies in this package, or under `build` of the checkout. Any program that runs ONNX Runtime can load it. That for
    `cuda` (`make cuda`) has the operators on a GPU and on the CPU.
    """
    name, folder = _BUILT[provider]
    here = Path(__file__).parent
    for place in (here / "_kernels", here.parent / "build" / folder):
        if (place / _FORM.format(name)).is_file():
            return place / _FORM.format(name)
    return None


def instruction_set(library: Path) -> str | None:
    """Which of its versions a library runs on this processor, `avx2` or `neon`; None where it cannot be loaded, or
    where PYTHIA_KERNELS_ISA names a version that does not run here."""
    try:
        version = ctypes.CDLL(str(library)).pythia_version
    except (OSError, AttributeError):
        return None
    version.restype = ctypes.c_char_p
    name: bytes | None = version()
    return None if name is None else name.decode()
