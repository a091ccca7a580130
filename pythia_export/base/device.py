"""Where torch computes: on the CPU, or on one NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from .errors import EnvironmentProblem, RecipeError, ResourceError
from .memory import memory_fault

DeviceName = Literal["cpu", "cuda"]
CPU = torch.device("cpu")


def device_called(name: str) -> torch.device:
    """
    Raises:
        RecipeError: another name than `cpu` or `cuda`.
        EnvironmentProblem: `cuda`, and torch reaches no GPU.
    """
    if name not in get_args(DeviceName):
        raise RecipeError(f"device {name!r}: {' or '.join(get_args(DeviceName))} was expected")
    if name == "cuda" and not torch.cuda.is_available():
        why = "is built without CUDA" if torch.version.cuda is None else "finds none"
        raise EnvironmentProblem(
            f"a GPU was asked for, and torch {torch.__version__} {why}",
            hint="Leave `--device cuda` out (of a sweep, `resources.device`); or check `nvidia-smi`, and install torch "
            "with CUDA (https://pytorch.org).",
        )
    return torch.device(name)


def described(device: torch.device) -> str:
    """`cpu`, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nothing has taken yet; of the CPU's, which the recipe has a budget for, none is counted."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


@contextmanager
def tensor_cores(device: torch.device) -> Iterator[None]:
    """Within, a GPU multiplies float32 matrices by its tensor cores, which read 10 bits of a fraction (TF32) and are
    several times as fast: of float32 alone, products of 6.9b's calibration would take an H100 four minutes at its peak.

    For sums over the calibration text: there no linear's loss is higher for it (tests/unit/base/test_device.py).
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def as_multiplied(x: torch.Tensor) -> torch.Tensor:
    """x float32 as products read it: within `tensor_cores` of a GPU the fractions' last 13 bits are cut off."""
    if torch.get_float32_matmul_precision() == "highest":
        return x
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)  # a NaN stays one, or becomes an infinity


@contextmanager
def memory_of(device: torch.device) -> Iterator[None]:
    """
    Raises:
        ResourceError: within, memory did not suffice, the GPU's or this machine's.
    """
    try:
        yield
    except torch.OutOfMemoryError as e:
        raise ResourceError(
            f"the memory of {described(device)} is too small: {str(e).partition('. ')[0]}",
            hint="Free it of other programs, or leave `--device cuda` out: the CPU needs one layer at a time as well.",
        ) from e
    except Exception as e:
        fault = memory_fault(e)
        if fault is None:
            raise
        raise fault from e
