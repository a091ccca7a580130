"""Peak resident memory and time of quantising random weights of the suite's real shapes.

    python benchmarks/memory.py 1.4b 6.9b:2 6.9b:4 [--method gptq] [--samples 16] [--length 512] [--json FILE]
    python benchmarks/memory.py 6.9b --samples 128 --length 2048 --device cuda

`6.9b:4` takes the first four layers only: what is held does not depend on the depth, and the two lines show that. Each
runs in a process of its own, int4 with groups of 128 and the recipe's defaults, the head int8, from a sharded float16
checkpoint; the tokens are random. Peak memory is the process's high-water mark, libraries included, and with
`--device cuda` what torch takes of the GPU's memory as well; the weights are then made there too. `--json` has the
seconds of each part besides.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from pythia_export.base.compute import Compute
from pythia_export.base.device import CPU, described, device_called
from pythia_export.base.machine import machine
from pythia_export.base.progress import Advance
from pythia_export.calibrate import quantize_stream
from pythia_export.checkpoint import open_checkpoint, pull
from pythia_export.model.neox import NeoXConfig, tensors
from pythia_export.model.suite import geometry
from pythia_export.recipe import Model, Quantize
from pythia_export.runtime import peak_memory_bytes
from pythia_export.weights.layout import layout
from pythia_export.weights.names import DATA_FILE
from pythia_export.weights.writer import WeightsWriter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="SIZE[:LAYERS]")
    parser.add_argument("--method", default="gptq", choices=["gptq", "rtn"])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--memory-gb", type=float, default=4.0, help="activations beyond this lie on disk")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--in-process", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = device_called(args.device)
    if args.in_process:
        found = quantised(args.in_process, args.method, args.samples, args.length, args.memory_gb, device)
        return print(json.dumps(found))

    on_gpu = device.type == "cuda"
    where = f"{machine()}, {described(device)}" if on_gpu else machine()
    print(f"{where}; {args.method}, {args.samples} x {args.length} tokens\n")
    print(f"| shape | layers | peak memory |{' of the GPU |' if on_gpu else ''} time | a layer |")
    print("|---" * (6 if on_gpu else 5) + "|")
    rows = []
    for shape in args.shapes:
        size, _, layers = shape.partition(":")
        config = geometry(f"EleutherAI/pythia-{size}")
        if config is None:
            parser.error(f"{size} is no size of the suite")
        if layers:
            config = dataclasses.replace(config, num_layers=int(layers))
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(config, Path(folder), device)
            command = [sys.executable, __file__, "--in-process", folder, *sys.argv[1:]]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append({"shape": size, "layers": config.num_layers, "method": args.method, **row})
        per_layer = row["seconds"] / config.num_layers
        print(
            f"| {size} | {config.num_layers} | {row['peak'] / 2**30:.2f} GiB "
            + (f"| {row['peak_of_gpu'] / 2**30:.2f} GiB " if on_gpu else "")
            + f"| {row['seconds']:.0f} s | {per_layer:.1f} s |",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def write_checkpoint(config: NeoXConfig, folder: Path, device: torch.device = CPU) -> None:
    """A checkpoint in the hub's form, a shard for each layer, the embedding and the head; `device` draws weights."""
    generator, index = torch.Generator(device).manual_seed(0), {}
    for shard, specs in groupby(tensors(config), key=lambda spec: spec.layer):
        values = {}
        for spec in specs:
            value = torch.empty(spec.shape, device=device)
            value.normal_(0, 0.02 if len(spec.shape) == 2 else 0.1, generator=generator)
            is_scale = spec.role == "norm" and spec.name.endswith("weight")
            values[spec.name] = (value + 1 if is_scale else value).half().cpu()
        file = f"{len(index)}-{shard}.safetensors"
        save_file(values, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(values, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config.to_dict("float16")))


def quantised(
    folder: Path, method: str, samples: int, length: int, memory_gb: float, device: torch.device
) -> dict[str, Any]:
    """Quantise the checkpoint in `folder`: peak memory in bytes, seconds in all and by part.

    The parts are those that report progress, and of quantising the rounding of the linears; what remains of it are sums
    over the calibration text.
    """
    checkpoint, parts = open_checkpoint(pull(Model(path=folder))), _Parts()
    config, quantize = checkpoint.config, Quantize(method=method)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (samples, length))
    places = layout(config, quantize, "float32")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        began = time.perf_counter()
        with WeightsWriter(Path(scratch) / DATA_FILE, places) as writer:
            record = quantize_stream(
                checkpoint, writer, ids if method == "gptq" else None, Compute(device, parts, memory_gb)
            )
        seconds = time.perf_counter() - began
    peak_of_gpu = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    parts.seconds["of it, rounding"] = sum(linear.seconds for linear in record.linears)
    return {"peak": peak_memory_bytes(), "peak_of_gpu": peak_of_gpu, "seconds": seconds, "parts": parts.seconds}


class _Parts:
    """The seconds of each part that reports its progress."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def track(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        began = time.perf_counter()
        yield lambda n: None
        self.seconds[title] = self.seconds.get(title, 0) + time.perf_counter() - began

    def note(self, message: str) -> None:
        print(message, file=sys.stderr)


if __name__ == "__main__":
    main()
