"""The inner loop of `columns.Beam` in C++ or CUDA (kernels/beam/), where the native kernels are built; in float32."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from ..base.device import described
from ..base.errors import EnvironmentProblem
from ..base.native_library import kernels_path, library_fault

OVERFLOW = 3  # what pythia_beam says of weights whose rounding errors' squares are not finite


class _Block(ctypes.Structure):
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
        library.pythia_beam.argtypes = [ctypes.POINTER(_Block)]
        if device == "cuda":
            library.pythia_cuda_beam.argtypes = [ctypes.POINTER(_Block), ctypes.c_void_p]
    except (OSError, AttributeError) as e:
        raise EnvironmentProblem(
            f"{path} cannot be used to quantise: {e}",
            hint=f"Build it anew for this machine (`make {'cuda' if device == 'cuda' else 'kernels'}`), or delete it: "
            "torch does without, slower.",
        ) from e
    return library


def round_block(
    top: int, first: int, apart: int, free: Tensor, settled: Tensor, scale: Tensor, zero: Tensor, factor: Tensor,
    owed: Tensor, cost: Tensor, errors: Tensor, codes: Tensor,
) -> bool:  # fmt: skip
    """Round a block of places [places, rows] in place.

    free, settled, scale, zero: [places, rows] float32. factor: [places, places]. owed: [rows * width, places].
    cost: [rows, width]. errors, codes: [rows * width, window], float32 and uint8, the block from column `first`, and
    the `apart` columns behind it move with their roundings. top: the largest code. False: some row has no rounding of
    finite cost left (a GPU says so in `cost` alone, where none is finite then).

    Raises:
        EnvironmentProblem: PYTHIA_KERNELS_ISA names a version that does not run here; the GPU refuses the kernel.
    """
    device, (places, rows), width = free.device, free.shape, cost.shape[1]
    library = _library(device.type)
    assert library is not None  # the caller has asked whether it is `available`
    strides = {x.stride(0) for x in (free, settled, scale, zero)}
    inner = {x.stride(1) for x in (free, settled, scale, zero, factor, owed, errors, codes)}
    assert strides == {rows} and inner == {1} and owed.stride(0) == places and cost.is_contiguous()
    block = _Block(
        rows, width, places, top, rows, factor.stride(0), errors.stride(0), first, apart,
        *(x.data_ptr() for x in (free, settled, scale, zero, factor, owed, cost, errors, codes)),
    )  # fmt: skip
    if device.type == "cuda":
        refused = library.pythia_cuda_beam(ctypes.byref(block), torch.cuda.current_stream(device).cuda_stream)
        if refused > 0:
            raise EnvironmentProblem(
                f"{described(device)} refuses the kernel of GPTQ's beam: CUDA error {refused}",
                hint="Build it anew for this GPU (`make cuda`), or delete it: torch does without, slower.",
            )
    else:
        refused = library.pythia_beam(ctypes.byref(block))
        if refused == OVERFLOW:
            return False
        if refused == 1:
            raise EnvironmentProblem(
                "PYTHIA_KERNELS_ISA names a version of the kernels that this processor or this build does not have",
                hint="kernels/README.md lists them; without the variable the best one is chosen.",
            )
    if refused:
        at_most = "64 and 32" if device.type == "cuda" else "64, 64 and 256"
        raise ValueError(f"a beam of width {width}, {places} places, {apart} apart; at most {at_most}")
    return True
