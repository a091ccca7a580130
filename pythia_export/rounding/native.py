"""The inner loop of `columns.Beam` in C++ or CUDA (kernels/beam/), where the native kernels are built; in float32."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..base.device import described
from ..base.errors import EnvironmentProblem
from ..base.native_library import kernels_path, library_fault

OVERFLOW = 3  # what pythia_beam says of weights whose rounding errors' squares are not finite


@dataclass(frozen=True)
class Block:
    """A block of places of some rows on their way through a beam of `width` roundings a row.

    top: the largest code. first: the column of errors and codes that the block begins at. apart: the columns behind it,
    which move with their roundings. free, settled, scale, zero: [places, rows] float32. factor: [places, places].
    owed: [rows * width, places]. cost: [rows, width]. errors, codes: [rows * width, window], float32 and uint8.
    """

    top: int
    first: int
    apart: int
    free: Tensor
    settled: Tensor
    scale: Tensor
    zero: Tensor
    factor: Tensor
    owed: Tensor
    cost: Tensor
    errors: Tensor
    codes: Tensor

    def as_struct(self) -> _Struct:
        (places, rows), width = self.free.shape, self.cost.shape[1]
        by_place, by_rounding = (self.free, self.settled, self.scale, self.zero), (self.owed, self.errors, self.codes)
        inner = {x.stride(1) for x in (*by_place, self.factor, *by_rounding)}
        assert {x.stride(0) for x in by_place} == {rows} and inner == {1}
        assert self.owed.stride(0) == places and self.cost.is_contiguous()
        pointers = (x.data_ptr() for x in (*by_place, self.factor, self.owed, self.cost, self.errors, self.codes))
        strides = self.factor.stride(0), self.errors.stride(0)
        return _Struct(rows, width, places, self.top, rows, *strides, self.first, self.apart, *pointers)


class _Struct(ctypes.Structure):
    """`pythia::Beam` of kernels/beam/beam.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "width", "places", "top", "row_stride", "factor_stride")),
        *((name, ctypes.c_int64) for name in ("window", "first", "apart")),
        *((name, ctypes.c_void_p) for name in ("free", "settled", "scale", "zero", "factor", "owed")),
        *((name, ctypes.c_void_p) for name in ("cost", "errors", "codes")),
    ]


@cache
def available(device: torch.device) -> bool:
    """Say whether the kernels for the device that computes, the CPU or a GPU, are built."""
    return _library(device.type) is not None


@cache
def _library(device: str) -> ctypes.CDLL | None:
    path = kernels_path("cuda" if device == "cuda" else "cpu") if device in ("cpu", "cuda") else None
    if path is None:
        return None
    try:
        fault = library_fault(path)
        if fault is not None:
            raise OSError(fault)
        library = ctypes.CDLL(str(path))
        library.pythia_beam.argtypes = [ctypes.POINTER(_Struct)]
        if device == "cuda":
            library.pythia_cuda_beam.argtypes = [ctypes.POINTER(_Struct), ctypes.c_void_p]
    except (OSError, AttributeError) as e:
        raise EnvironmentProblem(
            f"{path} cannot be used to quantise: {e}",
            hint="`pip install --force-reinstall --no-deps pythia-export` brings that for this machine, in a clone "
            f"`make {'cuda' if device == 'cuda' else 'kernels'}` builds it; or delete it: torch does without, slower.",
        ) from e
    return library


def round_block(block: Block) -> bool:
    """Round a block: its cost, errors and codes are written. False: some row has no rounding of finite cost left (a GPU
    says so in `cost` alone, where none is finite then).

    Raises:
        EnvironmentProblem: PYTHIA_KERNELS_ISA names a version that does not run here; the GPU refuses the kernel.
    """
    device, struct = block.free.device, block.as_struct()
    library = _library(device.type)
    assert library is not None  # the caller has asked whether it is `available`
    if device.type == "cuda":
        refused = library.pythia_cuda_beam(ctypes.byref(struct), torch.cuda.current_stream(device).cuda_stream)
        if refused > 0:
            raise EnvironmentProblem(
                f"{described(device)} refuses the kernel of GPTQ's beam: CUDA error {refused}",
                hint="Build it anew for this GPU (`make cuda`), or delete it: torch does without, slower.",
            )
    else:
        refused = library.pythia_beam(ctypes.byref(struct))
        if refused == OVERFLOW:
            return False
        if refused == 1:
            raise EnvironmentProblem(
                "PYTHIA_KERNELS_ISA names a version of the kernels that this processor or this build does not have",
                hint="kernels/README.md lists them; without the variable the best one is chosen.",
            )
    if refused:
        at_most = "64 and 32" if device.type == "cuda" else "64, 64 and 256"
        found = f"width {struct.width}, {struct.places} places, {struct.apart} apart"
        raise ValueError(f"a beam of {found}; at most {at_most}")
    return True
