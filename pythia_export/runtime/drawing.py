"""One draw in C++ (kernels/draw/), where the native kernels are built; in float32."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np

from ..base.native_library import kernels_path, library_fault


@cache
def _function() -> Callable[..., int] | None:
    """Return the library's function; None where there is none, or the library is older than it. NumPy draws then."""
    path = kernels_path()
    if path is None or library_fault(path) is not None:
        return None
    try:
        found = ctypes.CDLL(str(path)).pythia_draw
    except (OSError, AttributeError):
        return None
    found.restype = ctypes.c_int64
    found.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_double,
        ctypes.c_int64,
        ctypes.c_double,
        ctypes.c_double,
    ]
    return found


def native_draw(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None, u: float) -> int | None:
    """Return the token that `u`, drawn from [0, 1), stands for among finite `logits` [V]; None where NumPy has to say.

    It is NumPy's, unless `u` is as near to where another token begins as float32 rounds: of a flat distribution over
    4,096 tokens that was one draw in some thousands.
    """
    function = _function()
    if function is None or logits.dtype != np.float32 or not logits.flags.c_contiguous:
        return None
    at = logits.__array_interface__["data"][0]
    most = min(top_k or 0, logits.size)  # ctypes would take a number beyond 64 bits by its last 64
    token = function(at, logits.size, temperature, most, 1.0 if top_p is None else top_p, u)
    return None if token < 0 else token
