"""A process of its own that turns one pickled state dict into safetensors and does nothing else.

    python unpickle.py pytorch_model.bin out.safetensors [ENDING ...]

A pickle can call anything. torch reads it with `weights_only`, which knows tensors and plain containers and refuses the
rest; should that ever fail, it fails here and not beside the user's artifact. The file is mapped, and tensors are
written one by one: memory stays at the largest of them. Pickles from before torch 1.6 cannot be mapped; they are
read whole. A state dict inside another dict, as trainers save it beside their counters, is found. Tensors whose
name has one of the endings, buffers that are derived from the configuration, are left out. Whether the tensors are a
model's is for the reader of what is written to judge. What went wrong is one line on stderr, with exit code 1.
"""

from __future__ import annotations

import json
import sys
import zipfile
from math import prod
from pathlib import Path
from typing import Any

import torch

_HEADER = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
    torch.int8: "I8", torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
# Under which a state dict lies: Lightning and Accelerate, nanoGPT and others, DeepSpeed, tutorials of PyTorch.
_NESTED = ("state_dict", "model", "module", "model_state_dict")


def convert(source: Path, out: Path, ignored: tuple[str, ...] = ()) -> None:
    state = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    kept = {name: x for name, x in _tensors(state).items() if not str(name).endswith(ignored)}
    for name, tensor in kept.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name!r} is a {type(tensor).__name__}; a tensor was expected")
        if tensor.dtype not in _HEADER or tensor.layout != torch.strided:
            raise TypeError(f"{name} is {tensor.dtype}, {tensor.layout}; dense floats were expected")
    header, at = {}, 0
    for name, tensor in kept.items():
        nbytes = prod(tensor.shape) * tensor.element_size()
        header[name] = {
            "dtype": _HEADER[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + nbytes],
        }  # fmt: skip
        at += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with out.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for tensor in kept.values():
            f.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _tensors(state: Any) -> dict[Any, Any]:
    """The state dict: this dict, or the one inside it."""
    if not isinstance(state, dict):
        raise TypeError(f"a {type(state).__name__}; a dict of tensors was expected")
    if not state or any(isinstance(x, torch.Tensor) for x in state.values()):
        return state
    inner = [name for name in _NESTED if isinstance(state.get(name), dict)]
    if len(inner) != 1:
        raise TypeError(f"a dict of {', '.join(map(repr, list(state)[:8]))}; a dict of tensors was expected")
    return _tensors(state[inner[0]])


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]), tuple(sys.argv[3:]))
    except Exception as e:
        lines = str(e).strip().splitlines() or [""]
        named = next((line.strip() for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0])
        sys.exit(f"{type(e).__name__}: {named[:300]}")
