"""The CUDA kernels by ctypes, without ONNX Runtime: on a GPU, or their sources compiled for a CPU
(kernels/cuda/emulation.h)."""

from __future__ import annotations

import ctypes
import fcntl
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from places import ROOT

BUILD = ROOT / "build" / "kernels"  # of `make kernels`
ACTIVATIONS = {torch.float32: (0, 1e-5), torch.float16: (1, 1e-3), torch.bfloat16: (2, 8e-3)}  # code, precision
CACHES = {"float32": 0, "float16": 1, "int8": 3}

SIZES = ["batch", "heads", "head_dim", "rotary_dim", "fresh", "total", "room", "past_room", "positions", "bias_batch"]
KINDS = ["activations", "cache", "multiprocessors", "reserved"]
CACHED = ["past_key", "past_value", "past_key_scale", "past_value_scale"]
POINTERS = ["qkv", "cos", "sin", "position", "bias", *CACHED]
POINTERS += ["key", "value", "key_scale", "value_scale", "out", "workspace"]


class Attention(ctypes.Structure):
    """`PythiaCudaAttention` of attend.h."""

    _fields_ = [(name, ctypes.c_int64) for name in SIZES]
    _fields_ += [(name, ctypes.c_int32) for name in KINDS]
    _fields_ += [(name, ctypes.c_void_p) for name in POINTERS]


class Rotary(ctypes.Structure):
    """`PythiaCudaRotary` of rotate.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "heads", "tokens", "head_dim", "rotary_dim")]
    _fields_ += [(name, ctypes.c_int64) for name in ("batch_stride", "head_stride", "token_stride", "positions")]
    _fields_ += [("type", ctypes.c_int32), ("interleaved", ctypes.c_int32)]
    _fields_ += [(name, ctypes.c_void_p) for name in ("x", "cos", "sin", "position", "y")]


class Device(NamedTuple):
    """A library, and where the tensors lie that it is given: `cuda`, or `cpu` for the emulation."""

    library: ctypes.CDLL
    name: str
    multiprocessors: int
    wait: Callable[[], None]

    @property
    def stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream if self.name == "cuda" else None)


def device_of(path: Path, name: str) -> Device:
    """The device that a library computes on."""
    library = ctypes.CDLL(str(path))
    library.pythia_cuda_workspace.restype = ctypes.c_int64
    if name == "cuda":
        return Device(library, name, torch.cuda.get_device_properties(0).multi_processor_count, torch.cuda.synchronize)
    return Device(library, name, 132, lambda: None)


def emulated_library() -> Path | None:
    """The emulation, built anew where its sources changed; None where nothing was built here or there is no CMake.

    Raises:
        CalledProcessError: it does not compile.
    """
    if not (BUILD / "build.ninja").is_file() or not shutil.which("cmake"):
        return None
    with (BUILD / "emulated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two builds in one folder would spoil it
        subprocess.run(
            ["cmake", "--build", str(BUILD), "--target", "pythia_cuda_emulated", "--", "--quiet"],
            check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return BUILD / "libpythia_cuda_emulated.so"


class Prepared(NamedTuple):
    """One call of attention: `launch` can be repeated, and `outputs` are out, key, value and, of int8, their scales."""

    launch: Callable[[], None]
    outputs: list[torch.Tensor]


def prepared(
    device: Device,
    feeds: Mapping[str, torch.Tensor],
    heads: int,
    rotary_dim: int,
    cache: str,
    total: int,
    room: int = 0,
    shared: bool = False,
) -> Prepared:
    """A call on tensors of the device, named as the operator's inputs are (kernels/README.md).

    Present has `room` places, or as many as are needed; `shared`, it is the past's own memory, and nothing is copied.
    """
    (B, T, width), dtype, at = feeds["qkv"].shape, feeds["qkv"].dtype, device.name
    n, room = width // 3 // heads, max(room, total)
    past = [feeds[name] for name in CACHED if name in feeds]
    if shared:
        room, present = past[0].shape[2], past
    else:
        present = [torch.zeros(*x.shape[:2], room, *x.shape[3:], dtype=x.dtype, device=at) for x in past]
    out = torch.zeros(B, T, width // 3, dtype=dtype, device=at)
    past_room, positions = feeds["past_key"].shape[2], feeds["cos"].shape[0]
    call = Attention(B, heads, n, rotary_dim, T, total, room, past_room, positions, T * total)
    call.activations, call.cache, call.multiprocessors = ACTIVATIONS[dtype][0], CACHES[cache], device.multiprocessors
    given = {name: feeds[name] for name in feeds if name in POINTERS}
    given |= {"position": feeds["position_ids"], "out": out}
    given |= dict(zip(("key", "value", "key_scale", "value_scale"), present, strict=False))
    given["workspace"] = torch.empty(
        device.library.pythia_cuda_workspace(ctypes.byref(call)), dtype=torch.int8, device=at
    )
    for name, tensor in given.items():
        setattr(call, name, tensor.data_ptr())

    def launch() -> None:
        refused = device.library.pythia_cuda_attend(ctypes.byref(call), device.stream)
        assert refused == 0, f"CUDA error {refused}, with {len(given)} tensors"

    return Prepared(launch, [out, *present])
