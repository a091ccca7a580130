"""A process of its own that turns one pickled state dict into safetensors and does nothing else.

    python -m pythia_export.checkpoint.unpickle pytorch_model.bin out.safetensors

A pickle can call anything. torch reads it with `weights_only`, which knows tensors and plain containers and refuses the
rest; should that ever fail, it fails here and not beside the user's artifact. The file is mapped, and tensors are
written one by one: memory stays at the largest of them. Buffers that are derived from the configuration are left out.
What went wrong is one line on stderr, with exit code 1.
"""

from __future__ import annotations

import json
import sys
from math import prod
from pathlib import Path

import torch

from ..neox import IGNORED_BUFFERS

_HEADER = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


def convert(source: Path, out: Path) -> None:
    state = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(state, dict):
        raise TypeError(f"a {type(state).__name__}; a dict of tensors was expected")
    kept = {name: tensor for name, tensor in state.items() if not str(name).endswith(IGNORED_BUFFERS)}
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


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as e:
        lines = str(e).strip().splitlines() or [""]
        named = next((line.strip() for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0])
        sys.exit(f"{type(e).__name__}: {named[:300]}")
