"""The demo checkpoint through the whole pipeline on a GPU, beside the CPU."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import inspect
import json
import optparse
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import ROOT, Bench
from graph import RandomWeights
from safetensors.torch import save_file

from pythia_export.base.errors import EXIT_GATE
from pythia_export.cli import app
from pythia_export.model.neox import NeoXConfig, tensors
from pythia_export.weights.names import DATA_FILE

TINY = """
[model]
path = "tiny"
[calibration]
source = "file"
path = "calibration.txt"
samples = 2
sequence_length = 32
[quantize]
group_size = 32
beam = 2
[verify]
source = "file"
path = "verify.txt"
tokens = 96
sequence_length = 24
"""


def quantize(bench: Bench) -> None:
    """`quantize --device cuda`: the CPU's bytes, or, where sums were taken in another order, codes as good."""
    cpu, cuda = on_cpu(bench), on_cuda(bench, again=True)
    one, other = (np.fromfile(folder / DATA_FILE, np.uint8) for folder in (cpu, cuda))
    bench.check("weights of the same size", one.size == other.size, f"{one.size:,} and {other.size:,} bytes")
    same = hashlib.sha256(one).digest() == hashlib.sha256(other).digest()
    bench.say("the CPU's bytes", "yes" if same else f"no; {np.mean(one == other):.2%} of them")
    losses = [
        {x["name"]: x["loss"] for x in json.loads((folder / "quantization.json").read_text())["linears"] if x["loss"]}
        for folder in (cpu, cuda)
    ]
    ratios = [losses[1][name] / losses[0][name] for name in losses[0]]
    bench.say("losses of the linears beside the CPU's", statistics.mean(ratios), "of them")
    # What TF32 costs at most where it is emulated (tests/unit/base/test_device.py).
    bench.check("no linear's loss is 5 % above the CPU's", max(ratios) <= 1.05, max(ratios), "of it, the worst")


def verify(bench: Bench) -> None:
    """`verify --device cuda`: the CPU's figures of one artifact, and the loss of the GPU's weights beside the CPU's."""
    cpu, cuda = (_artifact(bench, weights) for weights in (on_cpu(bench), on_cuda(bench)))
    expected, got, of_cuda = (
        _cost(bench, cpu),
        _cost(bench, cpu, "--device", "cuda"),
        _cost(bench, cuda, "--device", "cuda"),
    )
    change = abs(got["kld"]["mean"] - expected["kld"]["mean"]) / expected["kld"]["mean"]
    bench.check(
        "KL of one artifact, where the original runs on the GPU: 2 % from the CPU's at most", change <= 0.02, change
    )
    # Paired on the same text, the noise of either is what each resolves by itself: wider than that of their difference.
    noise = max(_half_width(expected), _half_width(of_cuda))
    bench.say("dNLL of the CPU's weights", expected["delta_nll"]["mean"], "nats a token")
    bench.say("dNLL of the GPU's weights", of_cuda["delta_nll"]["mean"], "nats a token")
    bench.say("KL of the CPU's weights", expected["kld"]["mean"], "nats a token")
    bench.say("KL of the GPU's weights", of_cuda["kld"]["mean"], "nats a token")
    apart = abs(of_cuda["delta_nll"]["mean"] - expected["delta_nll"]["mean"])
    bench.check("dNLL of both within its interval", apart <= noise, apart / noise, "of half the interval")


def _artifact(bench: Bench, weights: Path) -> Path:
    folder = bench.work / f"{weights.name}-artifact"
    if not (folder / "manifest.json").is_file():
        command(bench, "export", weights, "--out", folder, "--overwrite")
    return folder


def _cost(bench: Bench, artifact: Path, *options: str) -> dict[str, Any]:
    command(bench, "verify", artifact, *options, codes=(0, EXIT_GATE))
    cost: dict[str, Any] = json.loads((artifact / "parity.json").read_text())["cost"]
    return cost


def _half_width(cost: dict[str, Any]) -> float:
    return (cost["delta_nll"]["high"] - cost["delta_nll"]["low"]) / 2


def on_cpu(bench: Bench) -> Path:
    """Weights that the CPU made, made once."""
    return _weights(bench, "demo-cpu")


def on_cuda(bench: Bench, again: bool = False) -> Path:
    """Weights that the GPU made."""
    return _weights(bench, "demo-cuda", "--device", "cuda", again=again)


def _weights(bench: Bench, name: str, *options: str, again: bool = False) -> Path:
    folder = bench.work / name
    if again or not (folder / "manifest.json").is_file():
        command(bench, "quantize", recipe(bench), "--out", folder, "--overwrite", *options)
    return folder


def recipe(bench: Bench) -> str:
    """The demo's; of a dry run, one of a checkpoint of one layer."""
    if not bench.dry:
        return "demo"
    path, checkpoint = bench.work / "tiny.toml", bench.work / "tiny"
    if not path.exists():
        demo = ROOT / "demo" / "main"
        config = NeoXConfig.from_dict(json.loads((demo / "config.json").read_text()), "config.json")
        config = dataclasses.replace(config, num_layers=1, hidden_size=32, num_heads=1, intermediate_size=32)
        weights = RandomWeights(config)
        checkpoint.mkdir()
        values = {spec.name: weights.tensor(spec.name).to(torch.float16) for spec in tensors(config)}
        save_file(values, checkpoint / "model.safetensors")
        (checkpoint / "config.json").write_text(json.dumps(config.to_dict("float16")))
        (checkpoint / "tokenizer.json").write_text((demo / "tokenizer.json").read_text())
        for name, module in (("calibration", optparse), ("verify", argparse)):
            (bench.work / f"{name}.txt").write_text(inspect.getsource(module))
        path.write_text(TINY)
    return str(path)


def command(bench: Bench, *args: Any, codes: tuple[int, ...] = (0,), on_gpu: bool = False) -> float:
    """Run `pythia-export ARGS` in this process; return the seconds that it took.

    Raises:
        RuntimeError: it ends with another exit code; its message is in the step's log.
    """
    words = [str(word) for word in args]
    print("pythia-export", *words, flush=True)
    began, on_gpu = time.perf_counter(), on_gpu or "cuda" in words
    with bench.computing() if on_gpu else nullcontext():
        try:
            code = app(words, standalone_mode=False)
        except SystemExit as e:
            code = e.code
    seconds = time.perf_counter() - began
    if (code or 0) not in codes:
        raise RuntimeError(f"pythia-export {' '.join(words)} ended with exit code {code}")
    bench.say(f"pythia-export {words[0]}{' --device cuda' if on_gpu else ''}", seconds, "s")
    return seconds
