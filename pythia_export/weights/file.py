"""`model.onnx_data`: written slot by slot as layers are done, read back as the matrices that they stand for."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..base.errors import IntegrityError, ResourceError
from ..model.neox import EMBEDDING, QKV, NeoXConfig
from .layout import Layout, packed_qkv_rows
from .packing import unpack, unpack_rows


class WeightsWriter:
    """Fills a file with the tensors of a layout, in any order, each once; leaving it incomplete is an error.

    `keep` leaves a file that is there as it is, for a run that goes on.
    """

    def __init__(self, path: Path, layout: Layout, keep: bool = False) -> None:
        self.path = path
        self._layout = layout
        self._missing = set(layout.slots)
        self._digests: dict[str, bytes] = {}
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

    def put(self, name: str, array: np.ndarray) -> None:
        slot = self._layout.slots[name]
        if name not in self._missing:
            raise ValueError(f"{name} is written twice")
        if array.shape != slot.shape or array.dtype != np.dtype(slot.dtype):
            raise ValueError(f"{name} is {array.dtype} {array.shape}; the layout has {slot.dtype} {slot.shape}")
        array = np.ascontiguousarray(array)
        runs = [array] if slot.pitch == slot.nbytes // slot.shape[0] else array  # part of wider rows: row by row
        for i, run in enumerate(runs):
            self._file.seek(slot.offset + i * slot.pitch)
            self._file.write(run.data)
        self._digests[name] = hashlib.sha256(array.data).digest()
        self._missing.remove(name)

    def digest(self, prefix: str) -> str:
        """SHA-256 of the tensors whose names begin so, as they were put; hexadecimal."""
        return _together({name: found for name, found in self._digests.items() if name.startswith(prefix)})

    def stored_digest(self, prefix: str) -> str:
        """The same, of what is in the file."""
        memory = np.memmap(self.path, np.uint8, mode="r")
        views = {name: slot.view(memory) for name, slot in self._layout.slots.items() if name.startswith(prefix)}
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
        if kind is None and self._missing:
            raise ValueError(f"{len(self._missing)} tensors were not written, {sorted(self._missing)[0]} among them")


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


class WeightsReader:
    """The tensors of an artifact by their checkpoint names, dequantised to float32, rows of QKV as on disk.

    With a `Checkpoint` it shares `tensor(name)`: whatever computes from one computes from the other.
    """

    def __init__(self, path: Path, layout: Layout, config: NeoXConfig) -> None:
        found = path.stat().st_size
        if found < layout.nbytes:
            raise IntegrityError(f"{path}: {found} bytes; its recipe lays out {layout.nbytes}")
        self._bytes = np.memmap(path, np.uint8, mode="r")
        self._layout, self._hidden = layout, config.hidden_size
        self._unpack_rows = np.argsort(packed_qkv_rows(config))

    def stored(self, name: str) -> np.ndarray:
        """One tensor as it is stored."""
        return self._layout.slots[name].view(self._bytes)

    def tensor(self, name: str) -> Tensor:
        """``name`` is that of the checkpoint, `gpt_neox.layers.0.attention.dense.weight` say; float32.

        With two products a layer the shifts of the norms and the bias of dense lie in other weights: here they are 0.
        """
        base, part = name.rsplit(".", 1)
        if self._layout.fused and part == "bias" and name not in self._layout.slots:
            return torch.zeros(self._hidden)
        plan = self._layout.linears.get(base)
        scheme = self._layout.embedding
        if name == f"{EMBEDDING}.weight" and scheme is not None:
            rows = {x: self.stored(f"{EMBEDDING}.{x}") for x in ("qweight", "scales")}
            return unpack_rows(rows, self._hidden, scheme)
        if plan is not None and part == "weight" and plan.method != "none":
            parts = {
                x: self.stored(f"{base}.{x}")
                for x in ("qweight", "scales", "zero_points")
                if f"{base}.{x}" in self._layout.slots
            }
            tensor = unpack(parts, plan.shape[1], plan.scheme, plan.block_size)
        else:
            tensor = torch.from_numpy(self.stored(name).astype(np.float32))
            if plan is not None and part == "weight":
                tensor = tensor.T
        if base.endswith(QKV):
            tensor = tensor[torch.from_numpy(self._unpack_rows)]
        return tensor.contiguous()
