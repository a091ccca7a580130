"""Calibration activations: in memory while they fit, a GPU's or the machine's, on disk beyond.

A plain file that is read and written a chunk at a time, not a memory map: the pages of a map count as resident.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..base.compute import Compute
from ..base.device import CPU, free_bytes
from ..base.errors import ResourceError
from ..model.neox import NeoXConfig

Shape = tuple[int, int, int]
Place = Path | torch.device  # a folder on the disk, or the memory of a device
KEPT_BYTES = 1 << 28  # of what a layer's last two products read, in memory
# The disk is the faster way to them as long as no more threads compute them anew: a wide layer takes a thread longer.
# At 100 GFLOP/s a thread and half a GB/s there and back, with the attention over 2,048 tokens.
WIDTH_A_THREAD = 256
SHARE_OF_GPU = 0.5  # of what is free; the rest is for a layer, its Hessians and what rounding takes


class Activations:
    """[windows, length, width] float32, visited in chunks of whole windows.

    place: where they lie; device: where chunks are computed, and come to. A file has no name in its folder, so that
    whatever ends the process frees it.
    """

    def __init__(self, shape: Shape, per_chunk: int, place: Place, device: torch.device = CPU) -> None:
        self.shape, self.device = shape, device
        self.slices = [slice(i, min(i + per_chunk, shape[0])) for i in range(0, shape[0], per_chunk)]  # of each chunk
        self._chunks: list[Tensor | None] = [None] * len(self.slices)
        self._memory = place if isinstance(place, torch.device) else CPU
        self._file = tempfile.TemporaryFile(dir=place) if isinstance(place, Path) else None  # noqa: SIM115

    @property
    def tokens(self) -> int:
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return len(self.slices)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Tensor:
        """Chunk `index`, [n, length, width]; written back only by assignment."""
        if self._file is None:
            chunk = self._chunks[index]
            if chunk is None:
                raise IndexError(f"chunk {index} was not written")
            return chunk.to(self.device)
        part = self.slices[index]
        chunk = torch.empty(part.stop - part.start, *self.shape[1:])
        self._file.seek(self._offset(part))
        self._file.readinto(chunk.numpy().data)
        return chunk.to(self.device)

    def __setitem__(self, index: int, chunk: Tensor) -> None:
        if self._file is None:
            self._chunks[index] = chunk.to(self._memory)
            return
        try:
            self._file.seek(self._offset(self.slices[index]))
            self._file.write(chunk.cpu().contiguous().numpy().data)
        except OSError as e:
            raise ResourceError(
                f"calibration activations ({4e-9 * self.tokens * self.shape[2]:.1f} GB) do not fit on the disk: {e}",
                hint="Free disk space, raise `calibration.memory_gb`, or calibrate on fewer samples.",
            ) from e

    def drop(self, index: int) -> None:
        """Give up a chunk's memory; a file's place is written again."""
        self._chunks[index] = None

    def _offset(self, part: slice) -> int:
        start: int = part.start
        return 4 * start * self.shape[1] * self.shape[2]


def place(shape: Shape, copies: int, compute: Compute) -> Place:
    """Return where `copies` of such activations fit: on the GPU that computes, within the budget of memory, or in
    files."""
    needed = 4 * shape[0] * shape[1] * shape[2] * copies
    if needed <= SHARE_OF_GPU * free_bytes(compute.device):
        return compute.device
    if needed <= compute.memory_gb * 1e9:
        return CPU
    return compute.scratch if compute.scratch is not None else Path(tempfile.gettempdir())


class Middles:
    """What dense and 4h_to_h of the layer at hand read, until they read it again: chunks [n, length, hidden] and
    [n, length, intermediate], of the same windows as those of `like`."""

    def __init__(self, config: NeoXConfig, like: Activations, place: Place) -> None:
        windows, length, _ = like.shape
        chunk = like.slices[0].stop
        self._mixed, self._up = (
            Activations((windows, length, width), chunk, place, like.device)
            for width in (config.hidden_size, config.intermediate_size)
        )
        self._have: set[int] = set()

    def keep(self, index: int, mixed: Tensor, up: Tensor) -> None:
        """Keep a chunk, if the disk takes it."""
        try:
            self._mixed[index], self._up[index] = mixed, up
        except ResourceError:  # others have filled it meanwhile: what is not kept is computed again
            return
        self._have.add(index)

    def take(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Return a chunk, which is given up; None if it was not kept."""
        if index not in self._have:
            return None
        self._have.remove(index)
        found = self._mixed[index], self._up[index]
        self._mixed.drop(index)
        self._up.drop(index)
        return found


def middles_bytes(config: NeoXConfig, tokens: int) -> int:
    """Return the bytes of what a layer's last two products read."""
    return 4 * tokens * (config.hidden_size + config.intermediate_size)


def reading_beats_computing(config: NeoXConfig, threads: int) -> bool:
    """Say whether `Middles` come faster from the disk than so many threads compute them again."""
    return threads * WIDTH_A_THREAD <= config.hidden_size


def place_of_middles(config: NeoXConfig, tokens: int, compute: Compute) -> Place | None:
    """Return where `Middles` are kept: in memory if they are few, else in files where that is faster than to compute
    them twice and the disk has room, else nowhere."""
    needed = middles_bytes(config, tokens)
    if needed <= KEPT_BYTES:
        return compute.device
    if compute.device.type != "cpu" or not reading_beats_computing(config, torch.get_num_threads()):
        return None
    folder = compute.scratch if compute.scratch is not None else Path(tempfile.gettempdir())
    return folder if shutil.disk_usage(folder).free > 2 * needed else None
