"""`model.onnx_data` as it is written: tensor by tensor as layers are done, each in the form that the graph reads."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..base.device import CPU
from ..base.errors import IntegrityError, NumericsError, ResourceError
from ..base.finite import all_finite
from ..model.neox import EMBEDDING, QKV
from ..model.rotary import rotary_tables
from ..rounding.grid import Quantized
from .growing import GrowingHash
from .layout import Layout, LinearPlan, packed_qkv_rows
from .packing import pack, pack_rows, round_rows


class WeightsWriter:
    """Fill a file with the tensors of a layout, in any order, each once; leaving it incomplete is an error.

    `keep` leaves a file that is there as it is, for a run that goes on. `digests` keeps the hash of every tensor, for
    runs that may be interrupted. `whole` hashes the file while it is written, for `sha256`.

    Raises:
        IntegrityError: there is no such file to keep, or it has another size.
        ResourceError: the disk has not the space.
    """

    def __init__(
        self, path: Path, layout: Layout, keep: bool = False, digests: bool = True, whole: bool = False
    ) -> None:
        self.path = path
        self.layout = layout
        self._qkv_rows = packed_qkv_rows(layout.config)
        self._missing = set(layout.slots)
        self._digests: dict[str, bytes] | None = {} if digests else None
        if keep and (not path.is_file() or path.stat().st_size != layout.nbytes):
            found = f"has {path.stat().st_size:,} bytes" if path.is_file() else "is not there"
            raise IntegrityError(
                f"{path} {found}; {layout.nbytes:,} bytes were written before", hint="Start anew without --resume."
            )
        self._file = path.open("r+b" if keep else "wb")
        try:
            os.posix_fallocate(self._file.fileno(), 0, layout.nbytes)
        except AttributeError:  # not on this platform: the size is set, the space is not reserved
            self._file.truncate(layout.nbytes)
        except OSError as e:
            self._file.close()
            raise ResourceError(
                f"{path}: {layout.nbytes / 1e9:.2f} GB are needed and cannot be reserved: {e.strerror}",
                hint="Free disk space, or choose another output directory.",
            ) from e
        if keep:
            for first, last in _gaps(layout):  # no tensor's, so nobody else writes or checks them
                self._file.seek(first)
                self._file.write(bytes(last - first))
        self._in_order = deque(sorted(layout.slots.values(), key=lambda slot: slot.offset))
        self._growing = GrowingHash(path, layout.nbytes) if whole else None

    def vector(self, name: str, value: Tensor) -> Tensor:
        """Write a bias or a norm; return it in float32 as the artifact will read it.

        Those that are folded into other weights are not stored and keep the value that this gave them.
        """
        if name not in self.layout.slots:
            return value
        stored = _cast(name, value, self.layout.dtype)
        packed = stored.cpu().numpy()
        self.put(name, packed[self._qkv_rows] if name.removesuffix(".bias").endswith(QKV) else packed)
        return stored.float()

    def rotary(self) -> None:
        """Write the tables of cosines and sines."""
        for name, values in zip(("rotary.cos", "rotary.sin"), rotary_tables(self.layout.config), strict=True):
            self.put(name, values.astype(self.layout.dtype))

    def embedding(self, table: Tensor) -> Tensor:
        """Write the table [vocab, hidden]; return it in float32 as the artifact will read it."""
        if self.layout.embedding is not None:
            rounded = round_rows(table, self.layout.embedding, self.layout.dtype)
            for part, array in pack_rows(rounded.to(CPU), self.layout.dtype).items():
                self.put(f"{EMBEDDING}.{part}", array)
            return rounded.dequantize()
        return self.float_embedding(table).float()

    def float_embedding(self, table: Tensor) -> Tensor:
        """Write a table that is stored in float; return it as it is stored."""
        stored = _cast(f"{EMBEDDING}.weight", table, self.layout.slots[f"{EMBEDDING}.weight"].dtype)
        self.put(f"{EMBEDDING}.weight", stored.cpu().numpy())
        return stored

    def stored(self, plan: LinearPlan, W: Tensor) -> Tensor:
        """Return a linear that is not quantised, in float32 as the artifact will read it."""
        return _cast(f"{plan.name}.weight", W, self.layout.slots[f"{plan.name}.weight"].dtype).float()

    def linear(self, plan: LinearPlan, W: Tensor, result: Quantized | None) -> None:
        """Write one linear [out, in]; `result` is None where it is not quantised."""
        if result is None:
            self.put(f"{plan.name}.weight", self.plain(plan, W))
            return
        rows = torch.from_numpy(self._qkv_rows) if plan.name.endswith(QKV) else None
        result = result.to(CPU)
        ordered = result if rows is None else result.rows(rows)
        for part, array in pack(ordered, plan, self.layout.dtype).items():
            self.put(f"{plan.name}.{part}", array)

    def plain(self, plan: LinearPlan, W: Tensor) -> np.ndarray:
        """Return what is stored of a linear [out, in] that is not quantised: [in, out]."""
        stored = _cast(f"{plan.name}.weight", W.cpu(), self.layout.slots[f"{plan.name}.weight"].dtype)
        ordered = stored[torch.from_numpy(self._qkv_rows)] if plan.name.endswith(QKV) else stored
        found: np.ndarray = ordered.T.contiguous().numpy()
        return found

    def packed(self, plan: LinearPlan, parts: Mapping[str, np.ndarray]) -> None:
        """Write one linear whose operands are packed already, by the names that `pack` gives them; rows as on disk."""
        for part, array in parts.items():
            self.put(f"{plan.name}.{part}", array[self._qkv_rows] if plan.name.endswith(QKV) else array)

    def put(self, name: str, array: np.ndarray) -> None:
        """Write one tensor, in the shape and dtype of its slot."""
        slot = self.layout.slots[name]
        if name not in self._missing:
            raise ValueError(f"{name} is written twice")
        if array.shape != slot.shape or array.dtype != np.dtype(slot.dtype):
            raise ValueError(f"{name} is {array.dtype} {array.shape}; the layout has {slot.dtype} {slot.shape}")
        array = np.ascontiguousarray(array)
        runs = [array] if slot.pitch == slot.nbytes // slot.shape[0] else array  # part of wider rows: row by row
        for i, run in enumerate(runs):
            self._file.seek(slot.offset + i * slot.pitch)
            self._file.write(run.data)
        if self._digests is not None:
            self._digests[name] = hashlib.sha256(array.data).digest()
        self._missing.remove(name)
        if self._growing is not None:
            self._tell(self._growing)

    def _tell(self, growing: GrowingHash) -> None:
        """What is before the first tensor that is missing will not change."""
        while self._in_order and self._in_order[0].name not in self._missing:
            self._in_order.popleft()
        self._file.flush()
        growing.final(self._in_order[0].offset if self._in_order else self.layout.nbytes)

    def sha256(self) -> str:
        """Return the hash of the file that was written (`whole`), hexadecimal."""
        assert self._growing is not None
        return self._growing.result()

    def digest(self, prefix: str) -> str:
        """Return the SHA-256 of the tensors whose names begin so, as they were put; hexadecimal."""
        assert self._digests is not None  # who asks for them keeps them
        return _together({name: found for name, found in self._digests.items() if name.startswith(prefix)})

    def stored_digest(self, prefix: str) -> str:
        """Return the same of what is in the file."""
        memory = np.memmap(self.path, np.uint8, mode="r")
        views = {name: slot.view(memory) for name, slot in self.layout.slots.items() if name.startswith(prefix)}
        return _together({n: hashlib.sha256(np.ascontiguousarray(x).data).digest() for n, x in views.items()})

    def kept(self, prefix: str) -> None:
        """The tensors whose names begin so were written by the run that this one goes on from."""
        self._missing -= {name for name in self._missing if name.startswith(prefix)}

    def commit(self) -> None:
        """All that was put is on the disk when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._missing and self._growing is not None:
            self._growing.stop()
        if kind is None and self._missing:
            raise ValueError(f"{len(self._missing)} tensors were not written, {sorted(self._missing)[0]} among them")


def _cast(name: str, value: Tensor, dtype: str) -> Tensor:
    """Raises:
    NumericsError: `dtype` does not hold a value.
    """
    stored = value.to(getattr(torch, dtype))
    read = stored.dtype == value.dtype != torch.float32  # of a checkpoint, where it was found to be finite
    if not read and not all_finite(stored):
        raise NumericsError(
            f"{name} has a value of {value.abs().max():.3g}, which {dtype} does not hold",
            hint="Export with dtype = 'float32', or give this tensor another type (quantize.embedding, quantize.head).",
        )
    return stored


def _gaps(layout: Layout) -> list[tuple[int, int]]:
    """Bytes between the tensors, from the first to the one behind the last."""
    found, end = [], 0
    for slot in sorted([*layout.slots.values(), *layout.wholes.values()], key=lambda slot: slot.offset):
        if slot.offset > end:
            found.append((end, slot.offset))
        end = max(end, slot.end)
    return found


def _together(digests: dict[str, bytes]) -> str:
    """One SHA-256 of several, whatever their order."""
    return hashlib.sha256(b"".join(name.encode() + b"\0" + digests[name] for name in sorted(digests))).hexdigest()
