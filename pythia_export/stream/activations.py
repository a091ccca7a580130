"""Calibration activations: in memory while they fit, on disk beyond.

A plain file that is read and written a chunk at a time, not a memory map: the pages of a map count as resident.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ResourceError

Shape = tuple[int, int, int]


class Activations:
    """[windows, length, width] float32, visited in chunks of whole windows.

    folder: where they lie on disk; None keeps them in memory. The file has no name in the folder, so that whatever ends
    the process frees it.
    """

    def __init__(self, shape: Shape, per_chunk: int, folder: Path | None) -> None:
        self.shape = shape
        self.slices = [slice(i, min(i + per_chunk, shape[0])) for i in range(0, shape[0], per_chunk)]  # of each chunk
        self._chunks: list[Tensor | None] = [None] * len(self.slices)
        self._file = None if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

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
            return chunk
        part = self.slices[index]
        chunk = torch.empty(part.stop - part.start, *self.shape[1:])
        self._file.seek(self._offset(part))
        self._file.readinto(chunk.numpy().data)
        return chunk

    def __setitem__(self, index: int, chunk: Tensor) -> None:
        if self._file is None:
            self._chunks[index] = chunk
            return
        try:
            self._file.seek(self._offset(self.slices[index]))
            self._file.write(chunk.contiguous().numpy().data)
        except OSError as e:
            raise ResourceError(
                f"calibration activations ({4e-9 * self.tokens * self.shape[2]:.1f} GB) do not fit on the disk: {e}",
                hint="Free disk space, raise `calibration.memory_gb`, or calibrate on fewer samples.",
            ) from e

    def _offset(self, part: slice) -> int:
        start: int = part.start
        return 4 * start * self.shape[1] * self.shape[2]


def fits(shape: Shape, copies: int, memory_gb: float) -> bool:
    """Whether `copies` of such activations stay below the budget."""
    return 4e-9 * shape[0] * shape[1] * shape[2] * copies <= memory_gb
