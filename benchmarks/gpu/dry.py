"""A GPU that is none, for `run.py --dry`: torch's is the tests' emulated device, the kernels' is their emulation that a
C++ compiler made, and ONNX Runtime's CUDA provider is that of the CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from emulated import emulation

from pythia_export.runtime import Session, onnxruntime, speed
from pythia_export.runtime.cache import Memory


@contextmanager
def emulated(library: Path) -> Iterator[torch.device]:
    """Within, `cuda` is a device of the CPU's, everywhere."""
    opened = Session.__init__

    def open_on_cpu(self: Session, *args: Any, **named: Any) -> None:
        opened(self, *args, **named)
        self._memory = Memory(self._ort, "cpu")  # where the cache lies

    with emulation() as device:
        called = [
            m for name, m in sys.modules.items() if name.startswith("pythia_export.") and hasattr(m, "device_called")
        ]
        patches = [
            *(
                patch.object(m, "device_called", lambda name: device if name == "cuda" else torch.device(name))
                for m in called
            ),
            patch.object(speed, "kernels_path", {"cuda": library, "cpu": None}.get),
            patch.dict(onnxruntime._EXECUTION_PROVIDERS, {"cuda": ["CPUExecutionProvider"]}),
            patch.object(onnxruntime, "_preload_cuda", lambda ort: ""),
            patch.object(Session, "__init__", open_on_cpu),
        ]
        for one in patches:
            one.start()
        try:
            yield device
        finally:
            for one in reversed(patches):
                one.stop()
