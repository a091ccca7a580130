"""One draw in C++ (kernels/draw/), where the native kernels are built; in float32."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ..base.native_library import kernels_path, library_fault
from .finite import all_finite


@cache
def _function() -> tuple[Callable[..., Any] | None, bool]:
    """Return the library's function, and whether it looks for NaN and infinity itself, as an older library's does not.

    None where there is no library, or one that is older still. NumPy draws then.
    """
    path = kernels_path()
    if path is None or library_fault(path) is not None:
        return None, False
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None, False
    looks = hasattr(library, "pythia_token")
    found = getattr(library, "pythia_token" if looks else "pythia_draw", None)
    if found is None:
        return None, False
    found.restype = ctypes.c_int64
    found.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_double,
        ctypes.c_int64,
        ctypes.c_double,
        ctypes.c_double,
    ]
    return found, looks


class _Nothing:
    """What no array is a view of."""


class NativeDraws:
    """Draws of the library by one temperature (above 0), top_k and top_p; where NumPy has to say, they are None.

    A token is NumPy's, unless the number drawn is as near to where another token begins as float32 rounds: of a flat
    distribution over 4,096 tokens that was one draw in some thousands.
    """

    def __init__(self, temperature: float, top_k: int | None, top_p: float | None) -> None:
        self._function, self._looks = _function()
        self._temperature = temperature
        self._top_k = top_k or 0
        self._top_p = 1.0 if top_p is None else top_p
        self._known: object = _Nothing  # whose address is known: after a run of the model it takes NumPy 3 us to say it
        self._form: tuple[tuple[int, ...], tuple[int, ...]] = (), ()
        self._address = self._count = self._row = self._most = 0

    def __call__(self, logits: np.ndarray, at: int, u: float) -> int | None:
        """Return the token that `u`, drawn from [0, 1), stands for in row `at` of `logits` [B, V].

        None too where a logit of the row is NaN or infinite.
        """
        known = logits.base is self._known and (logits.shape, logits.strides) == self._form
        if not known and not self._find(logits):
            return None
        if not self._looks and not all_finite(logits[at]):
            return None
        address = self._address + at * self._row
        assert self._function is not None
        token: int = self._function(address, self._count, self._temperature, self._most, self._top_p, u)
        return None if token < 0 else token

    def _find(self, logits: np.ndarray) -> bool:
        """Find where `logits` begin: where they are the whole of what they are a view of, for the next time too."""
        self._known = _Nothing
        if self._function is None or logits.dtype != np.float32 or not logits.flags.c_contiguous:
            return False
        self._address, (_, self._count), self._row = logits.ctypes.data, logits.shape, logits.strides[0]
        # ctypes would take a number beyond 64 bits by its last 64.
        self._most = self._top_k if self._top_k < self._count else 0
        base = logits.base
        if isinstance(base, np.ndarray) and base.size == logits.size and base.flags.c_contiguous:
            self._known, self._form = base, (logits.shape, logits.strides)
        return True
