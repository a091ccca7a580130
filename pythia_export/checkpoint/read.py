"""One tensor of a safetensors file: where it lies, and its values when they are asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import IntegrityError, NumericsError
from ..base.finite import all_finite
from .header import Entry

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
INTEGERS = {"I8": "<i1", "U8": "<u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8"}
_NOT_FINITE = (
    "Copy the file again. If it holds the same, training or the tool that saved it overflowed: take another checkpoint."
)


@dataclass(frozen=True)
class StoredTensor:
    """`name` is the file's own. Dtypes that `DTYPES` lacks cannot be read."""

    path: Path
    name: str
    entry: Entry

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    def require_float(self) -> None:
        """IntegrityError where it is of a dtype that no checkpoint has."""
        if self.entry.dtype not in DTYPES:
            raise IntegrityError(
                f"{self.path}: {self.name} is {self.entry.dtype}; {', '.join(DTYPES)} were expected",
                hint="Weights in 8 bits or fewer are quantised already: give the original checkpoint.",
            )

    def read(self) -> Tensor:
        """The values in their stored dtype; float64 as float32, as transformers reads it.

        Raises:
            IntegrityError: the file became shorter.
            NumericsError: a NaN, an infinity, or a float64 that float32 does not hold.
        """
        tensor = torch.empty(self.shape, dtype=DTYPES[self.entry.dtype])
        self._read_into(tensor.view(-1).view(torch.uint8).numpy())
        stored, tensor = tensor, tensor.float() if tensor.dtype == torch.float64 else tensor
        if not all_finite(tensor):
            at = [int(i) for i in torch.nonzero(~torch.isfinite(tensor))[0]]
            found = float(stored[tuple(at)])
            beyond = ", which float32 does not hold" if math.isfinite(found) else "; finite numbers were expected"
            raise NumericsError(f"{self.path}: {self.name} holds {found} at {at}{beyond}", hint=_NOT_FINITE)
        return tensor

    def integers(self) -> np.ndarray:
        """The values of a tensor of integers, in their stored dtype: what quantised checkpoints hold.

        Raises:
            IntegrityError: it is no tensor of integers, or the file became shorter.
        """
        if self.entry.dtype not in INTEGERS:
            raise IntegrityError(
                f"{self.path}: {self.name} is {self.entry.dtype}; integers were expected",
                hint="Copy the checkpoint again, or save it again with the tool that quantised it.",
            )
        found = np.empty(self.shape, INTEGERS[self.entry.dtype])
        self._read_into(found)
        return found

    def _read_into(self, memory: np.ndarray) -> None:
        # Read, not mapped: a mapping keeps every page that was touched resident, in the end all of them.
        with self.path.open("rb") as f:
            f.seek(self.entry.offset)
            bytes_of: Any = memory.reshape(-1).view(np.uint8).data
            got = f.readinto(bytes_of)
        if got != self.entry.nbytes:
            raise IntegrityError(
                f"{self.path}: {self.name} ends after {got:,} of {self.entry.nbytes:,} bytes. The file changed",
                hint="Start again once nothing writes into the checkpoint.",
            )
