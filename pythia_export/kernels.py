"""Where the native operators are: a library for ONNX Runtime, built from `kernels/`."""

from __future__ import annotations

import sys
from pathlib import Path

_NAME = {"darwin": "libpythia_kernels.dylib", "win32": "pythia_kernels.dll"}.get(sys.platform, "libpythia_kernels.so")


def kernels_path() -> Path | None:
    """The library to register with ONNX Runtime (`register_custom_ops_library`), in this package or in the checkout's
    `build/kernels`; None where it was not built. Any program that runs ONNX Runtime can load it."""
    here = Path(__file__).parent
    for folder in (here / "_kernels", here.parent / "build" / "kernels"):
        if (folder / _NAME).is_file():
            return folder / _NAME
    return None
