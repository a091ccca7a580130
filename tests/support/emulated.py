"""A device that is not the CPU, on the CPU: what a program for a GPU gets wrong without one shows here.

A tensor of the device is a wrapper about one of the CPU, which computes. As on a GPU, an operator whose tensors lie in
different places is refused (but for numbers without dimensions; stricter than CUDA, indices are no exception), and so
is to read its memory by numpy. With `tf32`, where torch is told that it may use tensor cores, products
see no more of a number than these do. Whether a GPU has an operator, what it makes of it and how fast, a GPU alone can
show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from pythia_export.base.device import CPU

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch does not help to make a device in Python", allow_module_level=True)
backend_registration._setup_privateuseone_for_python_backend("emulated")
DEVICE = torch.device("emulated:0")
_COPY = torch.ops.aten.copy_.default
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "matmul"}
See = Callable[[Any], None]


class Emulated(torch.Tensor):
    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Emulated:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def tolist(self) -> Any:
        return self.inner.tolist()  # torch has it for a GPU's tensors, and not for wrappers

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operator, args, kwargs or {})


def _mapped(x: Any, change: Callable[[Any], Any]) -> Any:
    """torch's tree_map, in a third of the time."""
    if isinstance(x, (list, tuple)):
        return type(x)(_mapped(part, change) for part in x)
    return change(x)


def _tf32(x: Any) -> Any:
    """What a GPU's tensor cores read of a float32 matrix: 10 bits of each fraction, the rest cut off."""
    if not isinstance(x, Emulated) or x.dtype != torch.float32 or x.ndim < 2:
        return x
    return Emulated((x.inner.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32))


def _run(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    wrappers: dict[int, Emulated] = {}
    apart: list[tuple[int, ...]] = []
    asked: list[torch.device] = []

    def bare(x: Any) -> Any:
        if isinstance(x, Emulated):
            wrappers[id(x.inner)] = x
            return x.inner
        if isinstance(x, torch.device):
            asked.append(x)
            return CPU
        if isinstance(x, torch.Tensor) and x.ndim:
            apart.append(tuple(x.shape))
        return x

    def placed(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return wrappers[id(x)] if id(x) in wrappers else Emulated(x)  # what works in place returns what it was given

    bare_args, bare_kwargs = _mapped(args, bare), {name: _mapped(x, bare) for name, x in kwargs.items()}
    here = bool(wrappers)
    if asked:  # a new tensor, or a copy
        here = asked[0].type == DEVICE.type
    elif operator is _COPY:
        here = isinstance(args[0], Emulated)
    elif here and apart:
        raise RuntimeError(f"{operator}: tensors of the CPU, {apart}, beside others of {DEVICE}")
    result = operator(*bare_args, **bare_kwargs)
    return _mapped(result, placed) if here else result


class _Mode(TorchDispatchMode):
    """Makes what is asked for on the device, and refuses products of matrices on the CPU."""

    def __init__(self, see: See, tf32: bool) -> None:
        super().__init__()
        self._see, self._tf32 = see, tf32

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._see(operator)
        if operator.overloadpacket.__name__ in _PRODUCTS:
            if all(type(x) is torch.Tensor and x.ndim > 1 for x in args[:2]):
                raise AssertionError(f"{operator} of matrices on the CPU")
            if self._tf32 and torch.get_float32_matmul_precision() == "high":
                args = _mapped(args, _tf32)
        return _run(operator, args, kwargs or {})


@contextmanager
def emulation(see: See = lambda operator: None, *, tf32: bool = False) -> Iterator[torch.device]:
    """`see` is shown every operator; a product of matrices on the CPU is an AssertionError."""
    with _Mode(see, tf32):
        yield DEVICE
