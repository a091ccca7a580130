"""Which errors mean that memory did not suffice, whoever says so: Python, torch, C++, ONNX Runtime, the system."""

from __future__ import annotations

import errno

from .errors import PythiaExportError, ResourceError

WORDS = (
    "can't allocate memory",  # torch on a CPU
    "not enough memory",  # torch on Windows
    "out of memory",  # CUDA
    "bad_alloc",  # C++
    "failed to allocate memory",  # ONNX Runtime
    "cannot allocate memory",  # the system, ENOMEM
)
HINT = (
    "Fewer calibration samples, a shorter `sequence_length` and a smaller `memory_gb` need less; "
    "`pythia-export plan RECIPE` estimates the need."
)


def memory_fault(error: BaseException) -> ResourceError | None:
    """What to raise for `error` where it says that memory did not suffice; None for another one, and for ours."""
    if isinstance(error, PythiaExportError) or not isinstance(error, Exception):
        return None
    said = next(iter(str(error).strip().splitlines()), "")
    meant = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not meant and not any(words in str(error).lower() for words in WORDS):
        return None
    return ResourceError(f"not enough memory: {said}".removesuffix(": "), hint=HINT)
