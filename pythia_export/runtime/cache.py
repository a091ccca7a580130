"""The KV cache of one batch, and the memory that it lies in."""

from __future__ import annotations

import math
import mmap
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_LINE = 64  # bytes of a line of a processor's cache
_HUGE = 1 << 22  # bytes from which on NumPy asks for huge pages


class Cache:
    """Keys and values of one batch: room for `max_len` tokens a row, `length` of them valid."""

    def __init__(self, batch: int, max_len: int, values: dict[str, Any], binding: Any) -> None:
        self.batch = batch
        self.max_len = max_len
        self.length = 0
        self._mask = np.zeros((batch, max_len), np.int64)
        self._values = values  # "past_key_values.0.key" -> OrtValue on the session's device
        self._binding = binding

    @property
    def mask(self) -> np.ndarray:
        """[B, length] int64: 1 for a real token, 0 for padding."""
        return self._mask[:, : self.length]

    def bind(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """What the next step reads and gives beside the cache: OrtValues by name."""
        for name, value in inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            self._binding.bind_ortvalue_output(name, value)


def aligned_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """Zeros where a line of the processor's cache begins; NumPy's own lie across lines, and every vector is read twice.

    Large ones in small pages: NumPy asks for pages of 2 MB, a first prompt touches each of them, for its few tokens of
    every head, and waits until all are cleared (of 410m's cache of 1,640 tokens 250 ms, against 5).
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if sys.platform == "linux" and size >= _HUGE:
        memory = np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    else:
        memory = np.zeros(size + _LINE, np.uint8)
    begin = -memory.ctypes.data % _LINE
    return memory[begin : begin + size].view(dtype).reshape(shape)
